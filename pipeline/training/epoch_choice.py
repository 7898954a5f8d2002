"""Comparison of epochs by a metric of the validation clips: the best one, early stopping, and the decays of `plateau`.

All three are functions of the history alone, so that a resumed run goes on as an undisturbed one.

Conventions: a score is a metric whose higher values are better, a loss times -1; a metric that is not defined is the lowest.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

EpochMetric = Literal["loss", "accuracy", "mAP", "auc", "precision", "recall", "f1", "d_prime"]


def epoch_scores(history: Sequence[Mapping[str, float]], metric: EpochMetric) -> list[float]:
    """Return each epoch's score, from the rows of a history with validation clips."""
    if metric == "loss":
        values = [-row["validation_loss"] for row in history]
    else:
        values = [row[metric] for row in history]
    return [-math.inf if math.isnan(value) else value for value in values]


def best_epoch(scores: Sequence[float]) -> int:
    """Return the position of the last of the highest scores."""
    return len(scores) - 1 - scores[::-1].index(max(scores))


def is_exhausted(scores: Sequence[float], patience: int) -> bool:
    """Return whether the last `patience` epochs were no better than an earlier one; 0 = never."""
    return bool(patience and scores) and len(scores) - 1 - scores.index(max(scores)) >= patience


def count_plateaus(scores: Sequence[float], patience: int) -> int:
    """Return how often more than `patience` epochs in a row were no better than the best before them.

    As torch's ReduceLROnPlateau with a threshold of 0: a count begins anew after each plateau.
    """
    best, waited, plateaus = -math.inf, 0, 0
    for score in scores:
        if score > best:
            best, waited = score, 0
        else:
            waited += 1
        if waited > patience:
            plateaus, waited = plateaus + 1, 0
    return plateaus
