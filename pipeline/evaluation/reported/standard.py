"""Standard metrics of audio tagging: accuracy, mAP, AUC, d-prime, and precision, recall and F1 of decisions.

Those of several labels a clip alone: `several_labels.py`.
Definitions and sources: `pipeline/evaluation/metric_functions.py`. Intervals: `pipeline/evaluation/intervals.py`.
"""

from pipeline.evaluation.intervals import accuracy_interval, map_interval
from pipeline.evaluation.metric_definition import Metric
from pipeline.evaluation.metric_functions import (
    Bools,
    Floats,
    accuracy,
    average_precision,
    d_prime,
    mean_of_defined,
    micro_f1,
    precision_recall_f1,
    roc_auc,
)


def mean_average_precision(scores: Floats, targets: Bools) -> float:
    """Return the mean over classes with a positive."""
    return mean_of_defined(average_precision(scores, targets))


def mean_auc(scores: Floats, targets: Bools) -> float:
    """Return the mean over classes with a positive and a negative."""
    return mean_of_defined(roc_auc(scores, targets))


METRICS = (
    Metric(
        "accuracy",
        "Accuracy",
        "the share of clips for which their class is decided",
        accuracy,
        takes="decisions",
        interval=accuracy_interval,
        percent=True,
        digits=1,
        label_kinds=("one",),
    ),
    Metric(
        "mAP",
        "mAP",
        "the mean over classes of the average precision",
        mean_average_precision,
        interval=map_interval,
        percent=True,
        digits=1,
    ),
    Metric(
        "AUC",
        "AUC",
        "the mean over classes of the area under the ROC curve",
        mean_auc,
        headline=(),
    ),
    Metric(
        "d_prime",
        "d′",
        "√2 times the inverse normal CDF of the mean AUC",
        lambda scores, targets: d_prime(mean_auc(scores, targets)),
        digits=2,
        headline=(),
    ),
    Metric(
        "macro_precision",
        "Macro precision",
        "the mean over classes of the precision of decisions",
        lambda decisions, targets: mean_of_defined(precision_recall_f1(decisions, targets).precision),
        takes="decisions",
        percent=True,
        digits=1,
        in_tables=False,
        headline=(),
    ),
    Metric(
        "macro_recall",
        "Macro recall",
        "the mean over classes of the recall of decisions",
        lambda decisions, targets: mean_of_defined(precision_recall_f1(decisions, targets).recall),
        takes="decisions",
        percent=True,
        digits=1,
        in_tables=False,
        headline=(),
    ),
    Metric(
        "macro_f1",
        "Macro F1",
        "the mean over classes of the F1 score of decisions",
        lambda decisions, targets: mean_of_defined(precision_recall_f1(decisions, targets).f1),
        takes="decisions",
        percent=True,
        digits=1,
        headline=("many",),
    ),
    Metric(
        "micro_f1",
        "Micro F1",
        "the F1 score of the decisions of all classes together",
        micro_f1,
        takes="decisions",
        percent=True,
        digits=1,
        in_tables=False,
        headline=(),
    ),
)
