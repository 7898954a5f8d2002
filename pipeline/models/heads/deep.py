"""Deep heads: a multilayer perceptron on the pooled positions of a clip, one for all classes or one for each.

Before each layer is a layer norm; after each but the last are GELU and dropout, so that logits are never dropped. `additive`
pools by additive attention (Bahdanau, Cho and Bengio, 2015, arXiv 1409.0473): position n has the weight
softmax(v · tanh(W x_n + b)) over the real positions.

With `per_class` each class has a head of its own with one logit, the pooling included: a class is added by adding a head,
and classes share no weight but the encoder's.

Conventions: B batch, N position, D width, R row, S time step, K class.
"""

from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from pipeline.models.parts import Encoder, Head, HeadParams, Stem
from pipeline.models.pooling import max_pool, mean_pool


class DeepParams(HeadParams):
    kind: Literal["deep"]
    pooling: Literal["mean", "mean_max", "additive"]
    hidden: list[PositiveInt]  # units of each layer before the classifier; none = a linear classifier behind a norm
    dropout: float = Field(ge=0, lt=1)  # after each hidden layer


class PerClassParams(DeepParams):
    kind: Literal["per_class"]  # type: ignore[assignment]


class Deep(Head):
    """Head that pools positions and classifies the result by one multilayer perceptron."""

    Params = DeepParams
    supports_time_steps = True

    def __init__(self, params: DeepParams, stem: Stem, encoder: Encoder, num_classes: int) -> None:
        super().__init__(params, stem, encoder, num_classes)
        width, self.num_classes = encoder.num_features, num_classes
        self.pooling = params.pooling
        self.attention = AdditiveAttention(width) if params.pooling == "additive" else None
        pooled = width * (2 if params.pooling == "mean_max" else 1)
        self.layers = perceptron([pooled, *params.hidden, num_classes], params.dropout)
        last = len(self.layers) - 1
        self.class_weights = (f"layers.{last}.weight", f"layers.{last}.bias")

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        logits: Tensor = self.layers(self._pooled(x, mask))
        return logits

    def classify_time_steps(self, x: Tensor, num_rows: int) -> Tensor:
        """Return the logits (B, S, K) of time steps, each as if it were the whole clip."""
        steps = x.reshape(-1, num_rows, x.shape[2])  # (B * S, R, D)
        return self.forward(steps, None).reshape(x.shape[0], -1, self.num_classes)

    def _pooled(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if self.attention is not None:
            weights: Tensor = self.attention(x, mask)
            return (weights[:, :, None] * x).sum(1)
        if self.pooling == "mean_max":
            return torch.cat([mean_pool(x, mask), max_pool(x, mask)], dim=1)
        return mean_pool(x, mask)


class PerClass(Head):
    """Head of one `Deep` head with a single logit for each class."""

    Params = PerClassParams
    supports_time_steps = True
    class_modules = "classes"

    def __init__(self, params: PerClassParams, stem: Stem, encoder: Encoder, num_classes: int) -> None:
        super().__init__(params, stem, encoder, num_classes)
        self.classes = nn.ModuleList(Deep(params, stem, encoder, 1) for _ in range(num_classes))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return torch.cat([head(x, mask) for head in self.classes], dim=1)

    def classify_time_steps(self, x: Tensor, num_rows: int) -> Tensor:
        heads = (head for head in self.classes if isinstance(head, Deep))
        return torch.cat([head.classify_time_steps(x, num_rows) for head in heads], dim=2)


class AdditiveAttention(nn.Module):
    """Weights (B, N) of positions (B, N, D) that sum to 1 over the real ones; those of padding are 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, width)
        self.score = nn.Linear(width, 1, bias=False)  # a bias would cancel in the softmax

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        scores: Tensor = self.score(torch.tanh(self.project(x)))[:, :, 0]
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        return scores.softmax(dim=1)


def perceptron(widths: list[int], dropout: float) -> nn.Sequential:
    """Return norm and linear layer from each width to the next, with GELU and dropout between them but not at the end."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.LayerNorm(before), nn.Linear(before, after), nn.GELU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers[:-2])
