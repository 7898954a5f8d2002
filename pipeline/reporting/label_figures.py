"""Charts of models of clips with several labels, as `pipeline/reporting/drawing.py` draws them: one `<svg>` element each.

Of many classes a few are drawn, and the figure's caption says which.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.evaluation.metric_functions import Floats, mean_of_defined
from pipeline.evaluation.ranking_curves import GRID
from pipeline.reporting.drawing import (
    INK,
    LINE,
    LINES,
    NARROW,
    WIDTH,
    add_legend,
    class_label,
    colour,
    legend_height,
    rectangle,
    render,
)
from pipeline.reporting.model_styles import NUM_COLOURS
from pipeline.reporting.several_labels import LabelResults

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_CURVES = 8  # half of them the most frequent classes, half those with the lowest precision
MOST_CONFUSED = 20  # classes of a matrix


def curve_classes(results: LabelResults) -> list[int]:
    """Return the classes whose curves are drawn: all, or the most frequent ones and those with the lowest precision."""
    precision = results.precision.mean(axis=1)
    defined = [int(position) for position in np.flatnonzero(np.isfinite(precision))]
    if len(defined) <= MOST_CURVES:
        return defined
    half = MOST_CURVES // 2
    frequent = sorted(defined, key=lambda position: -results.supports[position])[:half]
    hardest = sorted(defined, key=lambda position: precision[position])
    return frequent + [position for position in hardest if position not in frequent][: MOST_CURVES - half]


def confused_classes(results: LabelResults) -> list[int]:
    """Return the classes of the confusion matrix, in their order: all, or those with the most wrong decisions."""
    wrong = results.confusion - np.diag(np.diag(results.confusion))
    order = np.argsort(-(wrong.sum(axis=0) + wrong.sum(axis=1)), kind="stable")
    return sorted(order[:MOST_CONFUSED].tolist())


def curves_figure(name: str, results: LabelResults, classes: Sequence[str]) -> str:
    """Draw ROC and precision-recall curves of some classes, and their means over all classes."""
    shown = curve_classes(results)

    def draw(axes: Sequence["Axes"]) -> None:
        for axis, values in zip(axes, (results.roc, results.precision), strict=True):
            for number, position in enumerate(shown):
                line = LINES[number // NUM_COLOURS % len(LINES)]
                label = class_label(classes[position])
                axis.plot(GRID, values[position], line, color=colour(number), linewidth=1.4, alpha=0.85, label=label)
            axis.plot(GRID, _macro(values), color=INK, linewidth=2.6, label="mean of all classes")
            axis.set_xlim(0, 1)
            axis.set_ylim(0, 1.02)
            axis.grid()
        axes[0].plot([0, 1], [0, 1], ":", color=LINE)
        axes[0].set_xlabel("false positive rate")
        axes[0].set_ylabel("true positive rate")
        axes[1].set_xlabel("recall")
        axes[1].set_ylabel("precision")
        add_legend(axes[0])

    names = [*(class_label(classes[position]) for position in shown), "mean of all classes"]
    heights = 3.6 + legend_height(names), 6.2 + legend_height(names, NARROW)
    return render(f"curves-{name}", draw, columns=2, size=(WIDTH, heights[0]), narrow=heights[1])


def label_confusion_figure(name: str, results: LabelResults, classes: Sequence[str]) -> str:
    """Draw the share of the clips with a label (row) for which a class (column) is decided for."""
    shown = confused_classes(results)
    counts = results.confusion[np.ix_(shown, shown)]
    shares = counts / np.maximum(results.supports[shown], 1)[:, None]

    def draw(axes: Sequence["Axes"]) -> None:
        axis = axes[0]
        for row, column in zip(*np.nonzero(counts), strict=True):
            share = float(shares[row, column])
            face = colour(0 if row == column else NUM_COLOURS - 1)
            axis.add_patch(rectangle(column - 0.47, row - 0.47, 0.94, face, 0.08 + 0.72 * share**0.5))
            axis.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8)
        size, names = len(shown), [class_label(classes[position]) for position in shown]
        axis.set_xlim(-0.5, size - 0.5)
        axis.set_ylim(size - 0.5, -0.5)
        axis.set_aspect("equal")
        axis.set_xticks(range(size), names, rotation=90, fontsize=8.5)
        axis.set_yticks(range(size), names, fontsize=8.5)
        axis.tick_params(length=0)
        axis.set_xlabel("predicted label")
        axis.set_ylabel("true label")
        for spine in axis.spines.values():
            spine.set_visible(False)

    side = min(9.0, max(3.4, 0.36 * len(shown) + 1.6))
    return render(f"label-confusion-{name}", draw, size=(side, side))


def histogram_figure(name: str, results: LabelResults) -> str:
    """Draw the distribution of the scores of labels that clips have, and of those that they lack."""
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    edges = np.linspace(0, 1, results.histogram.shape[1] + 1)

    def draw(axes: Sequence["Axes"]) -> None:
        for counts, label, tint in zip(results.histogram, ("absent", "present"), (NUM_COLOURS - 1, 0), strict=True):
            shares = 100 * counts / max(1, counts.sum())
            axes[0].stairs(shares, edges, fill=True, color=colour(tint), alpha=0.45, label=f"label {label}")
        axes[0].set_yscale("log")
        axes[0].yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))  # powers need mathtext, which pages do without
        axes[0].yaxis.set_minor_formatter(NullFormatter())
        axes[0].set_xlabel("probability")
        axes[0].set_ylabel("share of labels, %")
        axes[0].set_xlim(0, 1)
        axes[0].grid(axis="y", which="major")
        add_legend(axes[0])

    return render(f"scores-{name}", draw, size=(4.4, 3.4), narrow=3.0)


def _macro(values: Floats) -> list[float]:
    """Return the mean over classes of each point of (class, point)."""
    return [mean_of_defined(column) if column.size else math.nan for column in values.T]
