"""Attention pooling head over time steps, as in PSLA (Gong, Chung and Glass, 2021, arXiv 2102.01243).

Each position has a probability for each class; an attention head's weights, normalised over positions for each class,
average these, and heads are averaged by learned weights. The output is the logit of that probability, computed in the log
domain, so that losses that take logits apply, and probabilities of 0 or 1 need no clipping. With `free_weights`, for PSLA's
published weights, the heads' weights need not sum to 1.

Conventions: B batch, N position, D width, H head, K class.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt
from torch import Tensor, nn

from pipeline.models.parts import Encoder, Head, HeadParams, Stem

_SMALLEST = 1e-7  # probability, as in the authors' loss


class AttentionParams(HeadParams):
    kind: Literal["attention"]
    heads: NonNegativeInt  # 0 = the plain mean of the positions' probabilities


class AttentionPooling(Head):
    Params = AttentionParams

    def __init__(self, params: AttentionParams, stem: Stem, encoder: Encoder, num_classes: int) -> None:
        super().__init__(params, stem, encoder, num_classes)
        self.num_classes, features, heads = num_classes, encoder.num_features, params.heads
        outputs = max(heads, 1) * num_classes
        self.score = nn.Linear(features, outputs)
        self.attend = nn.Linear(features, outputs) if heads else None
        rows = ("score",) if self.attend is None else ("score", "attend")
        self.class_weights = tuple(f"{name}.{kind}" for name in rows for kind in ("weight", "bias"))
        # Logarithms of the heads' weights; unless `free_weights`, their sum cancels in the logit: the result is an average.
        self.head_weights = nn.Parameter(torch.zeros(heads)) if heads > 1 else None

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        scores = self._by_head(self.score(x))  # (B, N, H, K)
        weights = F.logsigmoid(self._by_head(self.attend(x))) if self.attend is not None else torch.zeros_like(scores)
        if mask is not None:
            weights = weights.masked_fill(~mask[:, :, None, None], -torch.inf)
        weights = weights.log_softmax(dim=1)  # normalised by the sum of the sigmoids over time
        if self.head_weights is not None:
            weights = weights + self.head_weights[:, None]
        present = torch.logsumexp(weights + F.logsigmoid(scores), dim=(1, 2))
        absent = torch.logsumexp(weights + F.logsigmoid(-scores), dim=(1, 2))
        if self.free_weights and self.head_weights is not None:
            total = (
                self.head_weights.exp().sum()
            )  # of `present` and `absent` together; a probability above 1 is cut off
            absent = (absent.exp() + 1 - total).clamp(min=_SMALLEST).log()
        return present - absent

    def _by_head(self, outputs: Tensor) -> Tensor:
        """Return (B, N, H * K) as (B, N, H, K), in at least float32, for logarithms of small probabilities."""
        precise = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        return precise.reshape(*precise.shape[:2], -1, self.num_classes)
