"""What the page shows of a model where clips may have several labels: curves, confusions, scores, and the worst clips.

Conventions: scores and targets (clip, class) as in `pipeline/evaluation/metric_functions.py`; seeds are averaged, and clips
of all folds are counted together. Curves are means over folds.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.calibration import Reliability, measure_reliability
from pipeline.evaluation.choosing import ScoredExperiment
from pipeline.evaluation.ensemble import ScoredClips
from pipeline.evaluation.metric_functions import Bools, Floats, decide, validate
from pipeline.evaluation.ranking_curves import ranking_curves

BINS = 40  # of the histogram of scores
WORST = 20  # clips
_LEAST = 1e-7  # probability that a clip's loss is computed with, at least


@dataclass(frozen=True)
class WorstClip:
    """A clip with a high loss, and what was decided wrongly."""

    clip_id: str
    fold: str
    labels: tuple[str, ...]
    missed: tuple[str, ...]  # labels that are not decided for
    wrong: tuple[str, ...]  # classes that are decided for, and that it has not
    loss: float  # binary cross-entropy, mean over known labels, in nats


@dataclass(frozen=True, eq=False)
class LabelResults:
    """Results of one model."""

    supports: NDArray[np.int64]  # (class,) clips with the class
    roc: Floats  # (class, point), see `pipeline/evaluation/ranking_curves.py`
    precision: Floats  # (class, point)
    confusion: NDArray[np.int64]  # (class, class), see `count_confusions`
    histogram: NDArray[np.int64]  # (2, bin) scores of labels that clips lack, and of those that they have
    worst: list[WorstClip]


def label_results(scores: ScoredExperiment, model: str) -> LabelResults:
    """Return the results of a model."""
    folds = [scores.scored[model, fold] for fold in scores.folds]
    checked = [validate(clips.scores, clips.targets) for clips in folds]
    curves = [ranking_curves(*own) for own in checked]
    return LabelResults(
        supports=np.sum([targets.sum(axis=0) for _, targets in checked], axis=0),
        roc=_mean([roc for roc, _ in curves]),
        precision=_mean([precision for _, precision in curves]),
        confusion=np.sum([count_confusions(clips.decisions, clips.targets) for clips in folds], axis=0),
        histogram=np.sum([count_scores(*own) for own in checked], axis=0),
        worst=_worst(folds, scores),
    )


def reliability_of(scores: ScoredExperiment, model: str) -> Reliability:
    """Return the reliability of a model's probabilities over the clips of all folds."""
    folds = [scores.scored[model, fold] for fold in scores.folds]
    checked = [validate(clips.scores, clips.targets) for clips in folds]
    values, targets = (np.concatenate(parts) for parts in zip(*checked, strict=True))
    return measure_reliability(values, targets, folds[0].label_kind)


def count_confusions(decisions: Bools, targets: NDArray[np.float32]) -> NDArray[np.int64]:
    """Count by (label that a clip has, class that is decided for): (class, class).

    Off the diagonal counts a class that the clip is known not to have: labels that do occur together are no confusion.
    """
    have, lack = (targets == 1).astype(np.float32), targets == 0
    counts = have.T @ (decisions & lack).astype(np.float32)
    np.fill_diagonal(counts, (decisions & (targets == 1)).sum(axis=0))
    rounded: NDArray[np.int64] = np.rint(counts).astype(np.int64)
    return rounded


def count_scores(scores: Floats, targets: Bools) -> NDArray[np.int64]:
    """Return the histograms (2, bin) over 0 to 1 of the scores of labels that clips lack, and of those that they have."""
    negatives = scores[~targets & ~np.isnan(scores)]
    return np.stack([np.histogram(own, bins=BINS, range=(0, 1))[0] for own in (negatives, scores[targets])])


def _worst(folds: Sequence[ScoredClips], scores: ScoredExperiment) -> list[WorstClip]:
    """Return the clips with the highest loss, each in the first fold that tests it."""
    found: list[WorstClip] = []
    for clips in folds:
        losses = _losses(clips)
        own = [row for row, clip in enumerate(clips.clip_ids) if scores.fold_of[clip] == clips.fold]
        found += [_describe(clips, row, losses[row]) for row in sorted(own, key=lambda row: -losses[row])[:WORST]]
    return sorted(found, key=lambda clip: (-clip.loss, clip.clip_id))[:WORST]


def _losses(clips: ScoredClips) -> Floats:
    """Return each clip's binary cross-entropy, mean over known labels (clip,); 0 where none is known."""
    known, has = ~np.isnan(clips.targets), clips.targets == 1
    right = np.where(has, clips.scores, 1 - clips.scores)
    losses: Floats = (-np.log(np.maximum(right, _LEAST)) * known).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    return losses


def _describe(clips: ScoredClips, row: int, loss: float) -> WorstClip:
    targets = clips.targets[row]
    decided = decide(clips.scores[row : row + 1], clips.label_kind, clips.thresholds)[0]

    def names(chosen: Bools) -> tuple[str, ...]:
        return tuple(clips.classes[position] for position in np.flatnonzero(chosen))

    has = targets == 1
    wrong = decided & (targets == 0)
    return WorstClip(clips.clip_ids[row], clips.fold, names(has), names(has & ~decided), names(wrong), float(loss))


def _mean(values: Sequence[Floats]) -> Floats:
    """Return the mean over folds where a class is defined, NaN elsewhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing is NaN
        mean: Floats = np.nanmean(values, axis=0)
    return mean
