"""All metrics of all clips of a split at once, from the functions of `pipeline/evaluation/metric_functions.py`.

Conventions and sources are stated there. Only the report computes these; training and `evaluate` do not depend on this file.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.artifacts.clips import LabelKind
from pipeline.evaluation.ensemble import ScoredClips
from pipeline.evaluation.metric_functions import (
    accuracy,
    average_precision,
    confusion_matrix,
    d_prime,
    decide,
    mean_of_defined,
    precision_recall_f1,
    ratio,
    roc_auc,
    to_scores,
    validate,
)


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


def evaluate_clips(clips: ScoredClips) -> Scores:
    """Compute every metric of clips that were scored, by one model or by several on average."""
    return evaluate_scores(clips.scores, clips.targets, clips.label_kind)


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
    by_class = precision_recall_f1(decisions, positives)
    hits, num_decided, num_positives = (
        counts.sum() for counts in (by_class.true_positives, by_class.num_decided, by_class.num_positives)
    )
    micro = [
        float(ratio(np.array(hits * factor), np.array(below), empty=empty))
        for factor, below, empty in (
            (1, num_decided, 0.0),
            (1, num_positives, math.nan),
            (2, num_decided + num_positives, 0.0),
        )
    ]
    auc = mean_of_defined(aucs)
    columns = (average_precisions, aucs, by_class.precision, by_class.recall, by_class.f1)
    return Scores(
        num_clips=values.shape[0],
        num_classes=values.shape[1],
        num_present_classes=int((by_class.num_positives > 0).sum()),
        num_ranked_classes=int(np.isfinite(aucs).sum()),
        accuracy=accuracy(decisions, positives),
        mean_average_precision=mean_of_defined(average_precisions),
        mean_auc=auc,
        d_prime=d_prime(auc),
        macro_precision=mean_of_defined(by_class.precision),
        macro_recall=mean_of_defined(by_class.recall),
        macro_f1=mean_of_defined(by_class.f1),
        micro_precision=micro[0],
        micro_recall=micro[1],
        micro_f1=micro[2],
        classes=tuple(
            ClassScores(int(row[0]), int(row[1]), *(float(value) for value in row[2:]))
            for row in zip(by_class.num_positives, by_class.num_decided, *columns, strict=True)
        ),
        confusion=confusion_matrix(values, positives) if label_kind == "one" else None,
    )
