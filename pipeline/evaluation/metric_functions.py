"""Accuracy, average precision, ROC AUC, d-prime, precision, recall and F1: one function each, from scores and targets.

Training measures validation clips with these (`pipeline/evaluation/epoch_scores.py`), and the report all test clips
(`pipeline/evaluation/reported/standard.py`). They stand by themselves, so that a metric that is added to the report retrains
nothing: code identity follows functions, not files.

Conventions
-----------
`scores` and `targets` have shape (clip, class); they never change name or order. A score is a probability: the softmax
of a clip's logits where a clip has one class (label kind "one"), the sigmoid of each logit where it may have several
("many"). A target is 0 or 1, or NaN where it is unknown. Everything is computed in float64 over all clips of a split
together: a mean over batches would depend on the batch size.

Decisions: "one" decides for the class of the highest score (the first of equals); "many" decides for every class whose
score is at least its threshold, by default `DECISION_THRESHOLD`.

Unknown labels: a target of NaN says that nobody knows whether the clip has the class. Such an entry counts in no metric.
`validate` marks it by a score of NaN beside the target False; `average_precision` and `roc_auc` rank a class's other clips,
and `decide` decides against it, which makes it neither an error nor a hit. Metrics that count right decisions against, too,
take known decisions: 1 for, 0 against, NaN unknown (`known_decisions`).

Absent classes: a class without positives has no average precision, recall or F1; one without positives or without
negatives has no AUC. Such values are NaN, never 0 and never an exception; means run over the other classes.

Sources
-------
Average precision is the step-wise area sum_n (R_n - R_(n-1)) P_n without interpolation, equal scores forming one step
(as scikit-learn's `average_precision_score`); mAP is its unweighted mean over classes, as reported for AudioSet
(Gemmeke et al., ICASSP 2017; Hershey et al., ICASSP 2017). ROC AUC is the Mann-Whitney statistic with mid-ranks
(Hanley and McNeil, Radiology 143, 1982). d-prime = sqrt(2) * inverse normal CDF of the *mean* AUC (Hershey et al.):
the distance of two unit-variance normals with that AUC; infinite at AUC 1.
"""

import math
from collections.abc import Callable, Iterator
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.artifacts.clips import LabelKind, Link

DECISION_THRESHOLD = 0.5  # label kind many

_CLASSES_PER_BLOCK = 64  # bounds the memory of the sort: 20,000 clips of AudioSet take 10 MB an array, not 85

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def validate(scores: ArrayLike, targets: ArrayLike) -> tuple[Floats, Bools]:
    """Return scores (clip, class) as float64 and targets (clip, class) as bool; NaN and False where a target is unknown.

    Targets of bools cannot hold NaN: beside them a score of NaN says the same, so that what is returned can be passed
    again. Raises ValueError unless both have the same two axes with at least one clip and one class, scores are finite where
    targets are known, and targets are 0, 1 or NaN.
    """
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(targets)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"scores: expected shape (clip, class) with at least one of each, found {values.shape}")
    if truth.shape != values.shape:
        raise ValueError(f"targets: expected the shape of scores {values.shape}, found {truth.shape}")
    unknown = np.isnan(values) & ~truth if truth.dtype == bool else np.isnan(truth)
    if (wrong := ~(np.isfinite(values) | unknown)).any():
        row, column = np.argwhere(wrong)[0]
        raise ValueError(f"scores: expected finite numbers, found {values[row, column]} in row {row}, class {column}")
    if (wrong := ~(np.isin(truth, (0, 1)) | unknown)).any():
        found = truth[wrong][0]
        raise ValueError(f"targets: expected 0 or 1, found {found}: metrics take hard targets, not mixed-up ones")
    return (np.where(unknown, np.nan, values) if unknown.any() else values), truth == 1


def to_scores(logits: ArrayLike, link: Link) -> Floats:
    """Return the softmax or sigmoid of logits (clip, class), in float64 and without overflow."""
    values = np.asarray(logits, dtype=np.float64)
    if link == "softmax":
        exponentials = np.exp(values - values.max(axis=1, keepdims=True))
        softmax: Floats = exponentials / exponentials.sum(axis=1, keepdims=True)
        return softmax
    # exp(-log(1 + exp(-x))) keeps small scores apart, where (1 + tanh(x / 2)) / 2 would round them to equal zeros.
    sigmoid: Floats = np.exp(-np.logaddexp(0.0, -values))
    return sigmoid


def decide(scores: Floats, label_kind: LabelKind, thresholds: float | Floats = DECISION_THRESHOLD) -> Bools:
    """Return the decisions (clip, class): the highest score (one) or every score from its class's threshold on (many).

    `thresholds` is one for all classes, or (class,).
    """
    if label_kind == "one":
        decisions: Bools = np.arange(scores.shape[1]) == scores.argmax(axis=1)[:, None]
        return decisions
    return scores >= thresholds


def known_decisions(decisions: Bools, scores: Floats) -> Floats:
    """Return decisions (clip, class) as 1 and 0, and NaN where the score says that the label is unknown."""
    return np.where(np.isnan(scores), np.nan, decisions)


def accuracy(decisions: Bools, positives: Bools) -> float:
    """Return the share of clips whose decisions (clip, class) are all right; with one class a clip, the usual accuracy."""
    return float((decisions == positives).all(axis=1).mean())


class ClassDecisions(NamedTuple):
    """Counts and rates of decisions by class, each (class,). Precision is 0 for a class that was never decided for."""

    num_positives: NDArray[np.int64]
    num_decided: NDArray[np.int64]
    true_positives: NDArray[np.int64]
    precision: Floats
    recall: Floats
    f1: Floats


def precision_recall_f1(decisions: Bools, positives: Bools) -> ClassDecisions:
    """Compare decisions with positives, both (clip, class), class by class."""
    true_positives = (decisions & positives).sum(axis=0)
    num_decided, num_positives = decisions.sum(axis=0), positives.sum(axis=0)
    present = num_positives > 0
    return ClassDecisions(
        num_positives,
        num_decided,
        true_positives,
        precision=np.where(present, ratio(true_positives, num_decided, empty=0.0), np.nan),
        recall=ratio(true_positives, num_positives, empty=math.nan),
        f1=np.where(present, ratio(2 * true_positives, num_decided + num_positives, empty=0.0), np.nan),
    )


def micro_f1(decisions: Bools, positives: Bools) -> float:
    """Return F1 over all decisions (clip, class) together: 0 where nothing is decided and nothing is positive."""
    num_true, num_decided, num_positives = (decisions & positives).sum(), decisions.sum(), positives.sum()
    return float(ratio(2 * num_true, num_decided + num_positives, empty=0.0))


def average_precision(scores: ArrayLike, targets: ArrayLike) -> Floats:
    """Return each class's average precision (class,): the mean, over its positives, of the precision at their score.

    Clips of equal score are counted together, so the order of clips does not matter. NaN without positives.
    """
    values, positives = validate(scores, targets)
    if np.isnan(values).any():
        return _by_known_clips(average_precision, values, positives)
    result = np.full(values.shape[1], np.nan)
    for block, ranked, ends in _ranked_blocks(-values, positives):
        found = np.take_along_axis(np.cumsum(ranked, axis=0), ends, axis=0)
        precision_at = found / (ends + 1)
        result[block] = ratio((precision_at * ranked).sum(axis=0), ranked.sum(axis=0), empty=math.nan)
    return result


def roc_auc(scores: ArrayLike, targets: ArrayLike) -> Floats:
    """Return each class's area under the ROC curve (class,): how often a positive outscores a negative, ties half.

    NaN for a class without positives or without negatives.
    """
    values, positives = validate(scores, targets)
    if np.isnan(values).any():
        return _by_known_clips(roc_auc, values, positives)
    num_clips = len(values)
    result = np.full(values.shape[1], np.nan)
    for block, ranked, ends in _ranked_blocks(values, positives):
        starts = np.where(_group_starts(ends), np.arange(num_clips)[:, None], 0)
        starts = np.maximum.accumulate(starts, axis=0)
        mid_ranks = (starts + ends) / 2 + 1
        num_positives = ranked.sum(axis=0)
        wins = (mid_ranks * ranked).sum(axis=0) - num_positives * (num_positives + 1) / 2
        result[block] = ratio(wins, num_positives * (num_clips - num_positives), empty=math.nan)
    return result


def _by_known_clips(metric: Callable[[Floats, Bools], Floats], values: Floats, positives: Bools) -> Floats:
    """Return a metric of each class (class,) over the clips whose label is known; NaN for a class without any."""
    result = np.full(values.shape[1], np.nan)
    for number, (scores, truth) in enumerate(zip(values.T, positives.T, strict=True)):
        known = ~np.isnan(scores)
        if known.any():
            result[number] = metric(scores[known][:, None], truth[known][:, None])[0]
    return result


def d_prime(mean_auc: float) -> float:
    """Return sqrt(2) * inverse normal CDF of a mean AUC: 0 at chance, infinite at AUC 1 (minus at 0), NaN of NaN."""
    if math.isnan(mean_auc):
        return math.nan
    if mean_auc in (0.0, 1.0):
        return math.copysign(math.inf, mean_auc - 0.5)
    return math.sqrt(2) * NormalDist().inv_cdf(mean_auc)


def confusion_matrix(scores: ArrayLike, targets: ArrayLike) -> NDArray[np.int64]:
    """Count clips by (actual class, class of the highest score), label kind one; the entries sum to the clips."""
    values, positives = validate(scores, targets)
    num_classes = values.shape[1]
    cells = positives.argmax(axis=1) * num_classes + values.argmax(axis=1)
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes).astype(np.int64)


def _ranked_blocks(keys: Floats, positives: Bools) -> Iterator[tuple[slice, Bools, NDArray[np.int64]]]:
    """Sort each class's clips by ascending key, a block of classes at a time.

    Yields the block, the sorted targets, and for each place the last place of its group of equal keys, (clip, class).
    """
    num_clips = len(keys)
    positions = np.arange(num_clips)[:, None]
    for start in range(0, keys.shape[1], _CLASSES_PER_BLOCK):
        block = slice(start, start + _CLASSES_PER_BLOCK)
        order = np.argsort(keys[:, block], axis=0, kind="stable")
        sorted_keys = np.take_along_axis(keys[:, block], order, axis=0)
        is_last = np.ones(sorted_keys.shape, dtype=bool)
        is_last[:-1] = sorted_keys[:-1] != sorted_keys[1:]
        ends = np.where(is_last, positions, num_clips)
        ends = np.minimum.accumulate(ends[::-1], axis=0)[::-1]
        yield block, np.take_along_axis(positives[:, block], order, axis=0), ends


def _group_starts(ends: NDArray[np.int64]) -> Bools:
    starts = np.ones(ends.shape, dtype=bool)
    starts[1:] = ends[1:] != ends[:-1]
    return starts


def ratio(above: NDArray[Any], below: NDArray[Any], *, empty: float) -> Floats:
    """Divide, with `empty` where nothing stands below the line."""
    result: Floats = np.where(below > 0, above / np.maximum(below, 1), empty)
    return result


def mean_of_defined(values: Floats) -> float:
    """Return the mean of the defined values, NaN when there are none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else math.nan
