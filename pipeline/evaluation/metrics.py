"""Accuracy, average precision, ROC AUC, d-prime, precision, recall and F1 of all clips of a split at once.

Conventions
-----------
`scores` and `targets` have shape (clip, class); they never change name or order. A score is a probability: the softmax
of a clip's logits where a clip has one class (label kind "one"), the sigmoid of each logit where it may have several
("many"). A target is 0 or 1. Everything is computed in float64 over all clips of a split together: a mean over batches
would depend on the batch size.

Decisions: "one" decides for the class of the highest score (the first of equals); "many" decides for every class whose
score is at least `DECISION_THRESHOLD`.

Absent classes: a class without positives has no average precision, recall or F1; one without positives or without
negatives has no AUC. Such values are NaN, never 0 and never an exception; means run over the other classes and their
number is reported beside the mean (`num_present_classes`, `num_ranked_classes`).

Sources
-------
Average precision is the step-wise area sum_n (R_n - R_(n-1)) P_n without interpolation, equal scores forming one step
(as scikit-learn's `average_precision_score`); mAP is its unweighted mean over classes, as reported for AudioSet
(Gemmeke et al., ICASSP 2017; Hershey et al., ICASSP 2017). ROC AUC is the Mann-Whitney statistic with mid-ranks
(Hanley and McNeil, Radiology 143, 1982). d-prime = sqrt(2) * inverse normal CDF of the *mean* AUC (Hershey et al.):
the distance of two unit-variance normals with that AUC; infinite at AUC 1.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.artifacts.clips import LabelKind

DECISION_THRESHOLD = 0.5  # label kind many

_CLASSES_PER_BLOCK = 64  # bounds the memory of the sort: 20,000 clips of AudioSet take 10 MB an array, not 85

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class ClassScores:
    """How one class fared. Precision is 0 for a class that was never decided for; NaN means undefined."""

    num_positives: int
    num_decided: int
    average_precision: float
    auc: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, eq=False)
class Scores:
    """How one set of scores fared. Values lie in [0, 1], except d-prime; NaN means undefined."""

    num_clips: int
    num_classes: int
    num_present_classes: int  # with a positive: mAP and the macro means run over these
    num_ranked_classes: int  # with a positive and a negative: the mean AUC runs over these
    accuracy: float  # one: decided class is the target; many: all of a clip's decisions are right
    mean_average_precision: float
    mean_auc: float
    d_prime: float
    macro_precision: float
    macro_recall: float
    macro_f1: float
    micro_precision: float
    micro_recall: float
    micro_f1: float
    classes: tuple[ClassScores, ...]
    confusion: NDArray[np.int64] | None  # (actual class, decided class) clips; label kind one only

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers and lists; undefined and infinite values stay NaN and inf (JSON has neither)."""
        values = asdict(self)
        values["confusion"] = None if self.confusion is None else self.confusion.tolist()
        return values


def evaluate(logits: ArrayLike, targets: ArrayLike, label_kind: LabelKind) -> Scores:
    """Turn logits (clip, class) into scores and compute every metric against `targets` (clip, class) of 0 and 1.

    Raises ValueError as `validate` does.
    """
    return evaluate_scores(to_scores(logits, label_kind), targets, label_kind)


def evaluate_scores(scores: ArrayLike, targets: ArrayLike, label_kind: LabelKind) -> Scores:
    """Compute every metric from scores (clip, class), for example the averaged ones of an ensemble."""
    values, positives = validate(scores, targets)
    if label_kind == "one" and (wrong := np.flatnonzero(positives.sum(axis=1) != 1)).size:
        found = int(positives[wrong[0]].sum())
        raise ValueError(
            f"targets: expected exactly one class a clip (label kind one), found {found} in row {wrong[0]}"
        )

    decisions = decide(values, label_kind)
    average_precisions, aucs = average_precision(values, positives), roc_auc(values, positives)
    true_positives = (decisions & positives).sum(axis=0)
    num_decided, num_positives = decisions.sum(axis=0), positives.sum(axis=0)
    present = num_positives > 0
    precision = np.where(present, _ratio(true_positives, num_decided, empty=0.0), np.nan)
    recall = _ratio(true_positives, num_positives, empty=math.nan)
    f1 = np.where(present, _ratio(2 * true_positives, num_decided + num_positives, empty=0.0), np.nan)
    micro = [
        float(_ratio(np.array(true_positives.sum() * factor), np.array(below), empty=empty))
        for factor, below, empty in (
            (1, num_decided.sum(), 0.0),
            (1, num_positives.sum(), math.nan),
            (2, num_decided.sum() + num_positives.sum(), 0.0),
        )
    ]
    auc = _mean(aucs)
    return Scores(
        num_clips=values.shape[0],
        num_classes=values.shape[1],
        num_present_classes=int(present.sum()),
        num_ranked_classes=int(np.isfinite(aucs).sum()),
        accuracy=float((decisions == positives).all(axis=1).mean()),
        mean_average_precision=_mean(average_precisions),
        mean_auc=auc,
        d_prime=d_prime(auc),
        macro_precision=_mean(precision),
        macro_recall=_mean(recall),
        macro_f1=_mean(f1),
        micro_precision=micro[0],
        micro_recall=micro[1],
        micro_f1=micro[2],
        classes=tuple(
            ClassScores(int(row[0]), int(row[1]), *(float(value) for value in row[2:]))
            for row in zip(num_positives, num_decided, average_precisions, aucs, precision, recall, f1, strict=True)
        ),
        confusion=confusion_matrix(values, positives) if label_kind == "one" else None,
    )


def validate(scores: ArrayLike, targets: ArrayLike) -> tuple[Floats, Bools]:
    """Return scores (clip, class) as float64 and targets (clip, class) as bool.

    Raises ValueError unless both have the same two axes with at least one clip and one class, scores are finite and
    targets are 0 or 1.
    """
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(targets)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"scores: expected shape (clip, class) with at least one of each, found {values.shape}")
    if truth.shape != values.shape:
        raise ValueError(f"targets: expected the shape of scores {values.shape}, found {truth.shape}")
    if not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0]
        raise ValueError(f"scores: expected finite numbers, found {values[row, column]} in row {row}, class {column}")
    if not np.isin(truth, (0, 1)).all():
        found = truth[~np.isin(truth, (0, 1))][0]
        raise ValueError(f"targets: expected 0 or 1, found {found}: metrics take hard targets, not mixed-up ones")
    return values, truth.astype(bool)


def to_scores(logits: ArrayLike, label_kind: LabelKind) -> Floats:
    """Return the softmax (one) or sigmoid (many) of logits (clip, class), in float64 and without overflow."""
    values = np.asarray(logits, dtype=np.float64)
    if label_kind == "one":
        exponentials = np.exp(values - values.max(axis=1, keepdims=True))
        softmax: Floats = exponentials / exponentials.sum(axis=1, keepdims=True)
        return softmax
    # exp(-log(1 + exp(-x))) keeps small scores apart, where (1 + tanh(x / 2)) / 2 would round them to equal zeros.
    sigmoid: Floats = np.exp(-np.logaddexp(0.0, -values))
    return sigmoid


def decide(scores: Floats, label_kind: LabelKind) -> Bools:
    """Return the decisions (clip, class): the highest score (one) or every score from the threshold on (many)."""
    if label_kind == "one":
        decisions: Bools = np.arange(scores.shape[1]) == scores.argmax(axis=1)[:, None]
        return decisions
    return scores >= DECISION_THRESHOLD


def average_precision(scores: ArrayLike, targets: ArrayLike) -> Floats:
    """Return each class's average precision (class,): the mean, over its positives, of the precision at their score.

    Clips of equal score are counted together, so the order of clips does not matter. NaN without positives.
    """
    values, positives = validate(scores, targets)
    result = np.full(values.shape[1], np.nan)
    for block, ranked, ends in _ranked_blocks(-values, positives):
        found = np.take_along_axis(np.cumsum(ranked, axis=0), ends, axis=0)
        precision_at = found / (ends + 1)
        result[block] = _ratio((precision_at * ranked).sum(axis=0), ranked.sum(axis=0), empty=math.nan)
    return result


def roc_auc(scores: ArrayLike, targets: ArrayLike) -> Floats:
    """Return each class's area under the ROC curve (class,): how often a positive outscores a negative, ties half.

    NaN for a class without positives or without negatives.
    """
    values, positives = validate(scores, targets)
    num_clips = len(values)
    result = np.full(values.shape[1], np.nan)
    for block, ranked, ends in _ranked_blocks(values, positives):
        starts = np.where(_group_starts(ends), np.arange(num_clips)[:, None], 0)
        starts = np.maximum.accumulate(starts, axis=0)
        mid_ranks = (starts + ends) / 2 + 1
        num_positives = ranked.sum(axis=0)
        wins = (mid_ranks * ranked).sum(axis=0) - num_positives * (num_positives + 1) / 2
        result[block] = _ratio(wins, num_positives * (num_clips - num_positives), empty=math.nan)
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


def _ratio(above: NDArray[Any], below: NDArray[Any], *, empty: float) -> Floats:
    """Divide, with `empty` where nothing stands below the line."""
    result: Floats = np.where(below > 0, above / np.maximum(below, 1), empty)
    return result


def _mean(values: Floats) -> float:
    """Return the mean of the defined values, NaN when there are none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else math.nan
