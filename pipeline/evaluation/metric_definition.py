"""Definition of a metric of the report: its name, its function, and how its values are shown.

Every module of `pipeline/evaluation/reported/` defines a tuple METRICS; `reported_metrics` finds all of them. So a new
metric is one new file there: it gets a column in `results/summary.csv`, in the table of `sonolex results` and on the page,
and a number in `results/metrics.json`. Training and `evaluate` do not depend on these definitions: a new one reruns `report`
alone.

Conventions: scores and targets are (clip, class), as in `pipeline/evaluation/metric_functions.py`.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

from numpy.typing import NDArray

from pipeline.artifacts.clips import LabelKind
from pipeline.evaluation.metric_functions import Bools
from pipeline.registry import collect


class Interval(NamedTuple):
    """Limits of a 95 % interval over the test clips of one fold."""

    low: float
    high: float


@dataclass(frozen=True)
class Metric:
    """A number for the test clips of one fold; NaN where it is not defined.

    `function` and `interval` take scores (float64), decisions (bool) or known decisions (float64: 1, 0, or NaN where the
    label is unknown), as `takes` says, and targets (bool), each of shape (clip, class).
    """

    name: str  # in summary.csv and metrics.json
    label: str  # head of its column
    description: str  # for the note below the table: `LABEL is DESCRIPTION.`
    function: Callable[[NDArray[Any], Bools], float]
    takes: Literal["scores", "decisions", "known_decisions"] = "scores"
    interval: Callable[[NDArray[Any], Bools], Interval] | None = None
    percent: bool = False  # the value is a share, shown in percent
    digits: int = 3  # shown after the decimal point
    higher_is_better: bool = True
    label_kinds: tuple[LabelKind, ...] = ("one", "many")  # that it is defined for; NaN for others
    in_tables: bool = True  # a column in `sonolex results` and on the page; summary.csv has every metric
    headline: tuple[LabelKind, ...] = ("one", "many")  # that it is in metrics.json for; there the tables have its seeds

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z]\w*", self.name):
            raise ValueError(f"Metric.name: expected letters, digits and underscores, found {self.name!r}")

    def spell(self, value: float) -> str:
        """Return a value as it is shown, without the unit; empty where it is not finite."""
        return f"{(100 if self.percent else 1) * value:.{self.digits}f}" if math.isfinite(value) else ""


# Metric that models are compared by, and the one beside it: accuracy says little where a clip has several labels.
PRIMARY: dict[LabelKind, str] = {"one": "accuracy", "many": "mAP"}
SECONDARY: dict[LabelKind, str] = {"one": "mAP", "many": "macro_f1"}


def primary_metric(label_kind: LabelKind) -> Metric:
    """Return the metric that results are headed and sorted by, and the best model is chosen by."""
    return reported_metrics()[PRIMARY[label_kind]]


def secondary_metric(label_kind: LabelKind) -> Metric:
    """Return the metric that stands beside the primary one."""
    return reported_metrics()[SECONDARY[label_kind]]


@cache
def reported_metrics() -> dict[str, Metric]:
    """Return every metric of `pipeline/evaluation/reported/` by its name: the standard ones, then those of other modules.

    Raises ValueError when two have one name.
    """
    metrics: dict[str, Metric] = {}
    for module, defined in collect("pipeline.evaluation.reported", "METRICS", first="standard").items():
        for metric in defined:
            if metric.name in metrics:
                raise ValueError(f"{module}: METRICS: expected names of their own, found {metric.name!r} a second time")
            metrics[metric.name] = metric
    return metrics
