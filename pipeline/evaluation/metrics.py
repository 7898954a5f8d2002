"""All metrics of all clips of a split at once, class by class and as means.

The metrics are those of `pipeline/evaluation/reported/`; conventions: `pipeline/evaluation/metric_functions.py`. Only the
report computes these; training and `evaluate` do not depend on this file.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.artifacts.clips import LINKS, LabelKind
from pipeline.evaluation.ensemble import ScoredClips
from pipeline.evaluation.metric_definition import Interval, reported_metrics
from pipeline.evaluation.metric_functions import (
    DECISION_THRESHOLD,
    Bools,
    Floats,
    average_precision,
    confusion_matrix,
    decide,
    known_decisions,
    precision_recall_f1,
    roc_auc,
    to_scores,
    validate,
)


@dataclass(frozen=True)
class ClassScores:
    """Metrics of one class. Precision is 0 for a class that was never decided for; NaN means undefined."""

    num_positives: int
    num_decided: int
    average_precision: float
    auc: float
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True, eq=False)
class Scores:
    """Metrics of one set of scores. NaN means undefined."""

    num_clips: int
    num_classes: int
    num_present_classes: int  # with a positive: mAP and the macro means run over these
    num_ranked_classes: int  # with a positive and a negative: the mean AUC runs over these
    values: dict[str, float]  # of every metric, by name
    classes: tuple[ClassScores, ...]
    confusion: NDArray[np.int64] | None  # (actual class, decided class) clips; label kind one only


def evaluate_clips(clips: ScoredClips) -> Scores:
    """Compute every metric of clips that were scored, by one model or by several on average."""
    return evaluate_scores(clips.scores, clips.targets, clips.label_kind, clips.thresholds)


def evaluate_intervals(clips: ScoredClips) -> dict[str, Interval]:
    """Return the intervals over clips that were scored, of the metrics that have one: NaN for another label kind."""
    values, positives = validate(clips.scores, clips.targets)
    taken = _taken(values, decide(values, clips.label_kind, clips.thresholds))
    return {
        metric.name: metric.interval(taken[metric.takes], positives)
        if clips.label_kind in metric.label_kinds
        else Interval(math.nan, math.nan)
        for metric in reported_metrics().values()
        if metric.interval
    }


def evaluate(logits: ArrayLike, targets: ArrayLike, label_kind: LabelKind) -> Scores:
    """Turn logits (clip, class) into scores and compute every metric against `targets` (clip, class) of 0 and 1.

    Raises ValueError as `validate` does.
    """
    return evaluate_scores(to_scores(logits, LINKS[label_kind]), targets, label_kind)


def evaluate_scores(
    scores: ArrayLike, targets: ArrayLike, label_kind: LabelKind, thresholds: float | Floats = DECISION_THRESHOLD
) -> Scores:
    """Compute every metric from scores (clip, class), for example the averaged ones of an ensemble.

    `thresholds` of decisions (label kind many) is one for all classes, or (class,).
    """
    values, positives = validate(scores, targets)
    if label_kind == "one" and (wrong := np.flatnonzero(positives.sum(axis=1) != 1)).size:
        found = int(positives[wrong[0]].sum())
        raise ValueError(
            f"targets: expected exactly one class a clip (label kind one), found {found} in row {wrong[0]}"
        )

    decisions = decide(values, label_kind, thresholds)
    taken = _taken(values, decisions)
    average_precisions, aucs = average_precision(values, positives), roc_auc(values, positives)
    by_class = precision_recall_f1(decisions, positives)
    columns = (average_precisions, aucs, by_class.precision, by_class.recall, by_class.f1)
    return Scores(
        num_clips=values.shape[0],
        num_classes=values.shape[1],
        num_present_classes=int((by_class.num_positives > 0).sum()),
        num_ranked_classes=int(np.isfinite(aucs).sum()),
        values={
            metric.name: float(metric.function(taken[metric.takes], positives))
            if label_kind in metric.label_kinds
            else math.nan
            for metric in reported_metrics().values()
        },
        classes=tuple(
            ClassScores(int(row[0]), int(row[1]), *(float(value) for value in row[2:]))
            for row in zip(by_class.num_positives, by_class.num_decided, *columns, strict=True)
        ),
        confusion=confusion_matrix(values, positives) if label_kind == "one" else None,
    )


def _taken(scores: Floats, decisions: Bools) -> Mapping[str, Floats | Bools]:
    """Return what metrics take, by `Metric.takes`."""
    return {"scores": scores, "decisions": decisions, "known_decisions": known_decisions(decisions, scores)}
