"""Validation of a model in training, epoch by epoch. Test clips have no part in it.

What is measured is the averaged weights, those that would be stored. Beside each epoch's numbers stand those of the mean
prediction of all epochs so far (`cumulative_...`), AST's and PSLA's ensemble of checkpoints. The loss is that of the logits;
theirs took the sigmoid of them twice, and could not fall below 0.69.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.artifacts.clips import LabelKind
from pipeline.training.averaging import WeightAverage
from pipeline.training.batches import Batches
from pipeline.training.distributed import DistributedContext
from pipeline.training.logits import predict_logits
from pipeline.training.losses import classification_loss

CUMULATIVE = ("accuracy", "mAP", "auc")

# Metrics by name from scores and targets, both (clip, class); they lie in a wing above, whoever trains hands them in.
Score = Callable[[np.ndarray, np.ndarray], dict[str, float]]


class Examples(NamedTuple):
    batches: Batches
    targets: Tensor  # (clip, class)
    clip_ids: list[str]


class Validation:
    """The validation clips, and the sum of what all epochs so far have said of them."""

    def __init__(self, examples: Examples, label_kind: LabelKind, score: Score | None, batch_size: int) -> None:
        self.total = torch.zeros(len(examples.targets), examples.targets.shape[1], dtype=torch.float64)
        self._examples, self._label_kind, self._score, self._batch_size = examples, label_kind, score, batch_size

    def measure(
        self, model: nn.Module, average: WeightAverage, epoch: int, context: DistributedContext
    ) -> dict[str, float]:
        """Return validation_loss and, where metrics were handed in, those of this epoch (from 1) and of all so far."""
        average.swap()
        logits = predict_logits(model, self._examples.batches, self._batch_size, context)
        average.swap()
        targets = self._examples.targets
        row = {"validation_loss": classification_loss(logits, targets, self._label_kind).item()}
        if self._score is None:
            return row
        logits = logits.double()
        scores = logits.softmax(1) if self._label_kind == "one" else logits.sigmoid()
        self.total += scores
        row |= self._score(scores.numpy(), targets.numpy())
        together = self._score((self.total / epoch).numpy(), targets.numpy())
        return row | {f"cumulative_{name}": together[name] for name in CUMULATIVE}
