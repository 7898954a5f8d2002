"""Attention pooling over time steps, as in PSLA (Gong, Chung and Glass, 2021, arXiv 2102.01243).

Each position is scored for each class; a head's attention, normalised over the positions for each class, weighs the scores
into a probability, and heads are averaged by learned weights. What comes out is the logit of that probability, computed from
logarithms alone, so that losses which take logits are right, and no probability of 0 or 1 has to be cut off.

Conventions: B batch, N position, D width, H head, K class.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt
from torch import Tensor, nn

from pipeline.models.parts import Encoder, Head, HeadParams, Stem


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
        # Logarithms of the heads' weights. What these add up to cancels out of the logit, so it is that of an average.
        self.head_weights = nn.Parameter(torch.zeros(heads)) if heads > 1 else None

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        scores = self._by_head(self.score(x))  # (B, N, H, K)
        weights = F.logsigmoid(self._by_head(self.attend(x))) if self.attend is not None else torch.zeros_like(scores)
        if mask is not None:
            weights = weights.masked_fill(~mask[:, :, None, None], -torch.inf)
        weights = weights.log_softmax(dim=1)  # a part of the attention: over the sum, over time, of the sigmoids
        if self.head_weights is not None:
            weights = weights + self.head_weights[:, None]
        present = torch.logsumexp(weights + F.logsigmoid(scores), dim=(1, 2))
        absent = torch.logsumexp(weights + F.logsigmoid(-scores), dim=(1, 2))
        return present - absent

    def _by_head(self, outputs: Tensor) -> Tensor:
        """Return (B, N, H * K) as (B, N, H, K), in float32 at least: logarithms of small probabilities need it."""
        precise = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        return precise.reshape(*precise.shape[:2], -1, self.num_classes)
