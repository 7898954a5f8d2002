"""ROC and precision-recall curves of classes, on a grid, so that curves of several folds have a mean.

Conventions: scores and targets (clip, class) as `validate` returns them, with NaN for unknown labels.
"""

import numpy as np

from pipeline.evaluation.metric_functions import Bools, Floats

GRID = np.linspace(0, 1, 101)  # false positive rates, and recalls


def ranking_curves(scores: Floats, targets: Bools) -> tuple[Floats, Floats]:
    """Return each class's true positive rates at false positive rates of GRID, and precisions at recalls of GRID.

    Both are (class, point), NaN for a class without positives; the first also for one without negatives.
    """
    roc, precision = np.full((2, scores.shape[1], len(GRID)), np.nan)
    for position in range(scores.shape[1]):
        known = ~np.isnan(scores[:, position])
        hits, decided = _counts(scores[known, position], targets[known, position])
        if not hits.size or not hits[-1]:
            continue
        recall, misses = hits / hits[-1], decided - hits
        precision[position] = (hits / decided)[np.searchsorted(recall, GRID, side="left")]
        if misses[-1]:
            roc[position] = np.interp(GRID, np.append(0, misses / misses[-1]), np.append(0, recall))
    return roc, precision


def _counts(scores: Floats, positives: Bools) -> tuple[np.ndarray, np.ndarray]:
    """Count true positives, and clips decided for, at each distinct score of a class as the threshold, descending."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)) if ranked.size else np.empty(0, np.int64)
    return np.cumsum(positives[order])[ends], ends + 1
