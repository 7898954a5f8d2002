"""Class-token head: a linear classifier of ViT's class token, or of the mean of class and distillation token (DeiT, AST).

The tokens are prepended to the positions and aggregate them by attention (Dosovitskiy et al., 2021; Touvron et al., 2021).

Conventions: B batch, N position, D width, S time step, K class.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.models.parts import Encoder, Head, HeadParams, Stem
from pipeline.models.positions import new_table

NORM_EPSILON = 1e-5  # of AST's norm before the classifier; published weights may have another


class ClassTokenParams(HeadParams):
    kind: Literal["class_token"]
    distillation_token: bool  # a second token, as in DeiT and AST


class ClassToken(Head):
    """Head that reads class tokens; with a stem of learned positions they have learned positions too, as in ViT."""

    Params = ClassTokenParams
    needs_class_tokens = supports_time_steps = True
    class_weights = ("classify.weight", "classify.bias")

    def __init__(self, params: ClassTokenParams, stem: Stem, encoder: Encoder, num_classes: int) -> None:
        super().__init__(params, stem, encoder, num_classes)
        width = encoder.num_features
        self.num_class_tokens = 2 if params.distillation_token else 1
        self.tokens = nn.Parameter(torch.randn(self.num_class_tokens, width) * 0.02)
        self.token_positions = new_table(self.num_class_tokens, width) if stem.has_position_table else None
        self.entering_weights = ("tokens",) if self.token_positions is None else ("tokens", "token_positions")
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.classify = nn.Linear(width, num_classes)

    def prepend_class_tokens(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        tokens = self.tokens if self.token_positions is None else self.tokens + self.token_positions
        x = torch.cat([tokens.expand(x.shape[0], -1, -1), x], dim=1)
        return x, None if mask is None else nn.functional.pad(mask, (self.num_class_tokens, 0), value=True)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        logits: Tensor = self.classify(self.norm(x[:, : self.num_class_tokens].mean(1)))
        return logits

    def classify_time_steps(self, x: Tensor, num_rows: int) -> Tensor:
        steps = x.reshape(x.shape[0], -1, num_rows, x.shape[2]).mean(2)
        logits: Tensor = self.classify(self.norm(steps))
        return logits
