"""Expected calibration error of probabilities; `pipeline/evaluation/calibration.py` says of which.

It stands twice, since a metric is told scores and targets alone, and the two label kinds compare other things.
"""

from pipeline.evaluation.calibration import measure_reliability
from pipeline.evaluation.metric_definition import Metric

METRICS = (
    Metric(
        "calibration_error",
        "ECE",
        "the expected calibration error of the probability of the likeliest class",
        lambda scores, targets: measure_reliability(scores, targets, "one").error,
        higher_is_better=False,
        label_kinds=("one",),
        in_tables=False,
        headline=(),
    ),
    Metric(
        "label_calibration_error",
        "ECE",
        "the expected calibration error of the probabilities of all labels",
        lambda scores, targets: measure_reliability(scores, targets, "many").error,
        higher_is_better=False,
        label_kinds=("many",),
        in_tables=False,
        headline=(),
    ),
)
