"""Validation of a model after every epoch of training, on validation clips only.

The averaged weights are measured, those that would be stored. Each epoch has also the metrics of the mean prediction of all
epochs so far (`cumulative_...`), AST's and PSLA's ensemble of checkpoints. The loss is computed from logits; the original
applied the sigmoid twice, so its loss could not fall below 0.69.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.training.augmentation.partners import PartnerSampler
from pipeline.training.averaging import WeightAverage
from pipeline.training.batches import Batches
from pipeline.training.distributed import DistributedContext
from pipeline.training.logits import predict_logits
from pipeline.training.losses import Loss
from pipeline.training.sampling import draw_versions

CUMULATIVE = ("accuracy", "mAP", "auc")

# Metrics by name from scores and targets, both (clip, class); passed in, since they are in a higher package.
Score = Callable[[np.ndarray, np.ndarray], dict[str, float]]


class Examples(NamedTuple):
    batches: Batches
    targets: Tensor  # (clip, class); NaN = unknown
    clip_ids: list[str]
    weights: Tensor | None = None  # (clip,) float64, for balanced sampling; None = from the targets
    partners: PartnerSampler | None = None  # of mixtures; None = no partners but those of the batch
    copies: Sequence[Batches] = ()  # of the same clips, with another speed or pitch

    def in_epoch(self, probability: float, seed: int) -> "Examples":
        """Return the clips as an epoch reads them: with this probability, each as one of its copies."""
        if not self.copies:
            return self
        versions = [self.batches, *self.copies]
        chosen = draw_versions(len(self.clip_ids), len(self.copies), probability, seed)
        return self._replace(batches=self.batches.among(versions, chosen))


class Validation:
    """Validation clips, and the sum of their scores over all epochs so far."""

    def __init__(self, examples: Examples, loss: Loss, score: Score | None, batch_size: int) -> None:
        self.total = torch.zeros(len(examples.targets), examples.targets.shape[1], dtype=torch.float64)
        self._examples, self._loss, self._score, self._batch_size = examples, loss, score, batch_size

    def measure(
        self, model: nn.Module, average: WeightAverage, epoch: int, context: DistributedContext
    ) -> dict[str, float]:
        """Return validation_loss and, if metrics were passed in, those of this epoch (from 1) and of all epochs so far."""
        average.swap()
        logits = predict_logits(model, self._examples.batches, self._batch_size, context)
        average.swap()
        targets = self._examples.targets
        row = {"validation_loss": self._loss(logits, targets).item()}
        if self._score is None:
            return row
        logits = logits.double()
        scores = logits.softmax(1) if self._loss.link == "softmax" else logits.sigmoid()
        self.total += scores
        row |= self._score(scores.numpy(), targets.numpy())
        together = self._score((self.total / epoch).numpy(), targets.numpy())
        return row | {f"cumulative_{name}": together[name] for name in CUMULATIVE}
