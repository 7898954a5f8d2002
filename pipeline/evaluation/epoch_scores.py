"""The metrics of one epoch: those of AST's and PSLA's result table, under names and by definitions that hold."""

from collections.abc import Callable

import numpy as np

from pipeline.artifacts.clips import LabelKind
from pipeline.evaluation.metrics import evaluate_scores


def epoch_scorer(label_kind: LabelKind) -> Callable[[np.ndarray, np.ndarray], dict[str, float]]:
    """Return a function from scores and targets, both (clip, class), to metrics by name.

    Precision and recall are the means over classes, by decisions at the threshold of `pipeline.evaluation.metrics`.
    """

    def score(scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        found = evaluate_scores(scores, targets, label_kind)
        return {
            "accuracy": found.accuracy,
            "mAP": found.mean_average_precision,
            "auc": found.mean_auc,
            "precision": found.macro_precision,
            "recall": found.macro_recall,
            "d_prime": found.d_prime,
        }

    return score
