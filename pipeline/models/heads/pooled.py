"""Pooling head: a linear classifier of positions pooled over the clip.

`mean` and `mean_max` pool over the real positions; `last` concatenates the final states of the two directions of a recurrent
encoder.

Conventions: B batch, N position, D width, S time step, K class.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.models.parts import Encoder, Head, HeadParams, Stem
from pipeline.models.pooling import max_pool, mean_pool


class PooledParams(HeadParams):
    kind: Literal["pooled"]
    pooling: Literal["mean", "mean_max", "last"]

    @property
    def needs_directions(self) -> bool:
        return self.pooling == "last"


class Pooled(Head):
    """Head without a norm before the classifier, since the magnitude of a mean carries confidence."""

    Params = PooledParams
    supports_time_steps = True
    class_weights = ("classify.weight", "classify.bias")

    def __init__(self, params: PooledParams, stem: Stem, encoder: Encoder, num_classes: int) -> None:
        super().__init__(params, stem, encoder, num_classes)
        self.pooling = params.pooling
        self.classify = nn.Linear(encoder.num_features * (2 if params.pooling == "mean_max" else 1), num_classes)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.pooling == "last":
            pooled = _last_states(x, mask)
        else:
            pooled = mean_pool(x, mask)
            if self.pooling == "mean_max":
                pooled = torch.cat([pooled, max_pool(x, mask)], dim=1)
        logits: Tensor = self.classify(pooled)
        return logits

    def classify_time_steps(self, x: Tensor, num_rows: int) -> Tensor:
        x = x.reshape(x.shape[0], -1, num_rows, x.shape[2])
        pooled = torch.cat([x.mean(2), x.amax(2)], dim=2) if self.pooling == "mean_max" else x.mean(2)
        logits: Tensor = self.classify(pooled)
        return logits


def _last_states(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return (B, D) of (B, N, D): the first half of the features at a clip's last real position, the second at its first."""
    width = x.shape[2] // 2
    if mask is None:
        return torch.cat([x[:, -1, :width], x[:, 0, width:]], dim=1)
    rows, last = torch.arange(x.shape[0], device=x.device), mask.sum(1) - 1
    return torch.cat([x[rows, last, :width], x[:, 0, width:]], dim=1)
