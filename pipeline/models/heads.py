"""Heads: from contextual positions to one vector a clip, and from that to logits.

`class` is ViT's class token; `class_distillation` AST's and DeiT's pair, averaged (Touvron et al., 2021); `mean` and
`mean_max` pool over the real positions; `last` takes the states in which the two directions of a recurrent network leave the
clip. The same weights say of every column of positions what they say of a clip: class
tokens have not learned that of single positions, means have (a clip's logits are then the mean of its columns').

Conventions: B batch, N position, C column, D width, K class.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.models.positions import new_table

HEAD_NORM_EPSILON = 1e-5  # of AST's norm before the classes; published weights may ask for their own

Pooling = Literal["mean", "mean_max", "class", "class_distillation"]
RecurrentPooling = Literal["mean", "mean_max", "last"]

_NUM_CLASS_TOKENS = {"class": 1, "class_distillation": 2, "mean": 0, "mean_max": 0, "last": 0}


class Head(nn.Module):
    """Adds its class tokens before the encoder (`open`) and reads the clip from the encoder's output (`forward`).

    With `has_positions` its tokens have positions of their own, as those of ViT have.
    """

    def __init__(
        self,
        pooling: Pooling | RecurrentPooling,
        width: int,
        num_classes: int,
        *,
        has_positions: bool = False,
        norm_epsilon: float = HEAD_NORM_EPSILON,
    ) -> None:
        super().__init__()
        self.pooling, self.num_tokens = pooling, _NUM_CLASS_TOKENS[pooling]
        if self.num_tokens:
            self.tokens = nn.Parameter(torch.randn(self.num_tokens, width) * 0.02)
        self.token_positions = new_table(self.num_tokens, width) if self.num_tokens and has_positions else None
        features = width * (2 if pooling == "mean_max" else 1)
        # AST's class tokens pass a second norm. Pooled positions do not: how large their mean is says how sure they are.
        self.norm = nn.LayerNorm(features, eps=norm_epsilon) if self.num_tokens else nn.Identity()
        self.classify = nn.Linear(features, num_classes)

    def open(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Put the class tokens in front of (B, N, D)."""
        if self.num_tokens:
            tokens = self.tokens if self.token_positions is None else self.tokens + self.token_positions
            x = torch.cat([tokens.expand(len(x), -1, -1), x], dim=1)
            if mask is not None:
                mask = nn.functional.pad(mask, (self.num_tokens, 0), value=True)
        return x, mask

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Map (B, N, D) to logits (B, K)."""
        if self.num_tokens:
            pooled = x[:, : self.num_tokens].mean(1)
        elif self.pooling == "last":
            pooled = _last_states(x, mask)
        else:
            pooled = _mean(x, mask)
            if self.pooling == "mean_max":
                largest = x if mask is None else x.masked_fill(~mask[:, :, None], -torch.inf)
                pooled = torch.cat([pooled, largest.amax(1)], dim=1)
        logits: Tensor = self.classify(self.norm(pooled))
        return logits

    def columns(self, x: Tensor, num_rows: int) -> Tensor:
        """Map (B, N, D) to logits (B, C, K) of the columns, each of `num_rows` positions."""
        x = x[:, self.num_tokens :].reshape(len(x), -1, num_rows, x.shape[2])
        pooled = torch.cat([x.mean(2), x.amax(2)], dim=2) if self.pooling == "mean_max" else x.mean(2)
        logits: Tensor = self.classify(self.norm(pooled))
        return logits


def _last_states(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return (B, D) of (B, N, D): the first half of the features at a clip's last real position, the second at its first."""
    width = x.shape[2] // 2
    if mask is None:
        return torch.cat([x[:, -1, :width], x[:, 0, width:]], dim=1)
    rows, last = torch.arange(len(x), device=x.device), mask.sum(1) - 1
    return torch.cat([x[rows, last, :width], x[:, 0, width:]], dim=1)


def _mean(x: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return x.mean(1)
    weights = mask[:, :, None].to(x.dtype)
    return (x * weights).sum(1) / weights.sum(1).clamp(min=1)
