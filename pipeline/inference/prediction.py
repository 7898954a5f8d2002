"""Predictions for sounds: probabilities of classes, or why a sound has none.

Conventions: times are seconds from the start of the sound; scores are probabilities (class,) float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from pipeline.artifacts.clips import LabelKind
from pipeline.evaluation.metric_functions import Bools, Floats, decide


class ClassScore(NamedTuple):
    """A class and its probability."""

    name: str
    score: float


@dataclass(frozen=True)
class Prediction:
    """What a model says of one sound, or of a part of it."""

    source: str  # path, or "array"
    start: float  # seconds
    end: float  # seconds
    classes: Sequence[str]
    label_kind: LabelKind
    thresholds: np.ndarray = field(repr=False)  # (class,)
    logits: np.ndarray = field(repr=False)  # (class,) float32
    scores: Floats = field(repr=False)  # (class,)

    def top(self, count: int = 5) -> list[ClassScore]:
        """Return the classes of the highest scores, the highest first."""
        order = np.argsort(-self.scores, kind="stable")[:count]
        return [ClassScore(self.classes[row], float(self.scores[row])) for row in order.tolist()]

    @property
    def decisions(self) -> Bools:
        """Decision for each class (class,): the likeliest, or with label kind "many" all that reach their threshold."""
        decisions: Bools = decide(self.scores[None], self.label_kind, self.thresholds)[0]
        return decisions

    @property
    def labels(self) -> list[str]:
        """The classes that are decided for."""
        return [self.classes[row] for row in np.flatnonzero(self.decisions).tolist()]


@dataclass(frozen=True)
class Failure:
    """A sound that could not be predicted: `reason` is one word for counting, `message` is for people."""

    source: str
    reason: str
    message: str
