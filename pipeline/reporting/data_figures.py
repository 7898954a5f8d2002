"""Charts of the data page, as `pipeline/reporting/drawing.py` draws them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.reporting.data_summary import ClassCounts, Histogram
from pipeline.reporting.drawing import NARROW, WIDTH, class_label, colour, rectangle, render

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_CLASSES = 60  # bars: those with most and those with fewest clips, half of each
_BAR = 0.2  # inches


def histogram_figure(durations: Histogram, bandwidths: Histogram) -> str:
    """Draw how many clips have which duration and which bandwidth, side by side."""
    from matplotlib.ticker import MaxNLocator

    def draw(axes: Sequence["Axes"]) -> None:
        shown = ((durations, 1.0, "duration, s"), (bandwidths, 1e-3, "bandwidth, kHz"))
        for axis, (histogram, unit, label) in zip(axes, shown, strict=True):
            axis.stairs(histogram.counts, histogram.edges * unit, fill=True, color=colour(0))
            axis.set_xlabel(label)
            axis.set_ylabel("clips")
            axis.set_xlim(0, histogram.edges[-1] * unit)
            axis.yaxis.set_major_locator(MaxNLocator(integer=True))
            axis.grid(axis="y")

    return render("histograms", draw, columns=2, size=(WIDTH, 2.6), narrow=4.8)


def shown_classes(counts: np.ndarray) -> np.ndarray:
    """Return the classes of the chart, the most frequent first; of many, those with most and those with fewest clips."""
    order = np.argsort(-counts, kind="stable")
    if len(order) <= _MOST_CLASSES:
        return order
    return np.concatenate([order[: _MOST_CLASSES // 2], order[-_MOST_CLASSES // 2 :]])


def class_count_figure(classes: ClassCounts) -> str:
    """Draw each class's clips as a bar, and its groups as a mark on it."""
    from matplotlib.ticker import MaxNLocator

    order = shown_classes(classes.clips)

    def draw(axes: Sequence["Axes"]) -> None:
        axis, places = axes[0], np.arange(len(order))
        axis.barh(places, classes.clips[order], height=0.72, color=colour(0), alpha=0.55, label="clips")
        axis.plot(classes.groups[order], places, "|", color=colour(2), markersize=9, markeredgewidth=2, label="groups")
        axis.set_yticks(places, [class_label(classes.names[i]) for i in order])
        axis.set_ylim(len(order) - 0.4, -0.6)
        axis.set_xlim(left=0)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="x")
        axis.set_xlabel("clips (bars) and groups (marks)")

    height = _BAR * len(order) + 0.8
    return render("class-counts", draw, size=(WIDTH, height), narrow=height)


def together_figure(together: np.ndarray, names: Sequence[str]) -> str:
    """Draw which classes occur together: a cell's opacity is the share of the row's clips that have the column's class."""
    shares = together / np.maximum(np.diag(together)[:, None], 1)

    def draw(axes: Sequence["Axes"]) -> None:
        axis, size = axes[0], len(names)
        for row, column in zip(*np.nonzero(together), strict=True):
            if row != column:
                axis.add_patch(
                    rectangle(column - 0.47, row - 0.47, 0.94, colour(0), 0.06 + 0.94 * float(shares[row, column]))
                )
        axis.set_xlim(-0.5, size - 0.5)
        axis.set_ylim(size - 0.5, -0.5)
        axis.set_aspect("equal")
        axis.set_xticks(range(size), [class_label(name) for name in names], rotation=90)
        axis.set_yticks(range(size), [class_label(name) for name in names])
        axis.tick_params(length=0, labelsize=7)
        axis.set_xlabel("also has")
        axis.set_ylabel("clips of")
        for spine in axis.spines.values():
            spine.set_visible(False)

    side = min(9.0, max(3.4, 0.22 * len(names) + 2.0))
    return render("together", draw, size=(side, side), narrow=NARROW + 0.1 if len(names) <= 12 else None)
