"""Metrics of the validation clips after an epoch: those of AST's and PSLA's result tables.

Built from `pipeline/evaluation/metric_functions.py` alone, never from what the report computes: a metric that is added there
must not retrain a model.
"""

from collections.abc import Callable

import numpy as np

from pipeline.artifacts.clips import LabelKind
from pipeline.evaluation.metric_functions import (
    accuracy,
    average_precision,
    d_prime,
    decide,
    mean_of_defined,
    precision_recall_f1,
    roc_auc,
    validate,
)


def epoch_scorer(label_kind: LabelKind) -> Callable[[np.ndarray, np.ndarray], dict[str, float]]:
    """Return a function from scores and targets, both (clip, class), to metrics by name.

    Precision, recall and F1 are the means over classes, by decisions at `metric_functions.DECISION_THRESHOLD`.
    """

    def score(scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        values, positives = validate(scores, targets)
        decisions, auc = decide(values, label_kind), mean_of_defined(roc_auc(values, positives))
        by_class = precision_recall_f1(decisions, positives)
        return {
            "accuracy": accuracy(decisions, positives),
            "mAP": mean_of_defined(average_precision(values, positives)),
            "auc": auc,
            "precision": mean_of_defined(by_class.precision),
            "recall": mean_of_defined(by_class.recall),
            "f1": mean_of_defined(by_class.f1),
            "d_prime": d_prime(auc),
        }

    return score
