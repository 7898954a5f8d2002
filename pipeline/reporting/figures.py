"""Charts of the report, as `pipeline/reporting/drawing.py` draws them: each returns one `<svg>` element for the page."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.artifacts.ngram_perplexity import NgramPerplexity
from pipeline.evaluation.calibration import Reliability
from pipeline.evaluation.metric_definition import Metric, primary_metric, reported_metrics, secondary_metric
from pipeline.reporting.bit_rates import BitRate
from pipeline.reporting.drawing import (
    LINE,
    LINES,
    MARKERS,
    NARROW,
    WIDTH,
    add_legend,
    class_label,
    colour,
    legend_height,
    rectangle,
    render,
)
from pipeline.reporting.model_styles import NUM_COLOURS, ModelStyle
from pipeline.reporting.plots import ClassRow, TrainingCurve
from pipeline.reporting.summary import ModelSummary, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_CLASSES = 40  # drawn in one figure: those with the lowest mean
_MOST_NUMBERED = 20  # classes of a confusion matrix whose cells hold numbers
_MOST_NARROW = 12  # classes of a confusion matrix that fits a phone; larger ones are scrolled


def results_figure(summaries: Sequence[ModelSummary], runs: Sequence[Run], styles: Mapping[str, ModelStyle]) -> str:
    """Draw every run's primary and secondary metric as dots, with the mean and a bar beside them.

    Both are shares. The bar is the deviation between folds; of a single fold, the interval over its test clips.
    """
    generator = np.random.default_rng(0)
    kind = summaries[0].label_kind
    shown = primary_metric(kind), secondary_metric(kind)

    def draw(axes: Sequence["Axes"]) -> None:
        for axis, metric, label in zip(axes, (about.name for about in shown), map(_axis_label, shown), strict=True):
            for position, summary in enumerate(summaries):
                values = 100 * np.array([run.values[metric] for run in runs if run.model == summary.model])
                heights = position + generator.uniform(-0.12, 0.12, len(values))
                tint, mean = colour(styles[summary.model].colour), 100 * summary.mean[metric]
                low, high = summary.interval.get(metric, (math.nan, math.nan))
                if len(summary.interval) == 0:
                    low, high = (summary.mean[metric] + sign * summary.deviation[metric] for sign in (-1, 1))
                reach = np.nan_to_num([[mean - 100 * low], [100 * high - mean]])
                axis.scatter(values, heights, s=22, color=tint, alpha=0.45, linewidths=0)
                axis.errorbar(
                    mean, position + 0.3, xerr=np.maximum(reach, 0), color=tint, fmt="D",
                    markersize=5.5, elinewidth=2, capsize=0,
                )  # fmt: skip
                axis.annotate(
                    f"{mean:.1f}", (mean, position + 0.3), (0, -12), textcoords="offset points", ha="center", fontsize=9
                )
            axis.set_ylim(len(summaries) - 0.3, -0.45)
            axis.set_xlabel(label)
            axis.set_yticks(range(len(summaries)), [summary.model for summary in summaries])
            axis.tick_params(axis="y", length=0)
            axis.grid(axis="x")
            axis.spines["left"].set_visible(False)
            axis.margins(x=0.08)

    height = 0.62 * len(summaries) + 0.9
    return render("results", draw, columns=2, size=(WIDTH, height), share_rows=True, narrow=2 * height)


def _axis_label(metric: Metric) -> str:
    """Return the label of the axis of a metric in percent: the first letter small, but in "mAP"."""
    return f"{metric.label[0].lower()}{metric.label[1:]}, %"


def bit_rate_figure(rows: Sequence[BitRate], styles: Mapping[str, ModelStyle]) -> str:
    """Draw each model's primary metric over the bit rate of what it reads, which is logarithmic.

    Models of one entry are joined, and models on frames, as hollow markers at the rate of stored values, have a line across.
    Those on frames that score less than every model on tokens, such as `majority`, are left out.
    """
    from matplotlib.ticker import NullFormatter

    lowest = min(row.score for row in rows if row.vocabulary)
    by_entry: dict[str, list[BitRate]] = {}
    for row in rows:
        if row.score >= lowest:
            by_entry.setdefault(row.entry, []).append(row)

    def draw(axes: Sequence["Axes"]) -> None:
        axis = axes[0]
        for own in by_entry.values():
            rates, scores = [row.bits_per_second for row in own], [100 * row.score for row in own]
            tint = colour(styles[own[0].model].colour)
            if own[0].vocabulary:
                axis.plot(rates, scores, color=tint, linewidth=1.2, alpha=0.5, zorder=1)
            else:
                axis.axhline(scores[0], color=tint, linewidth=1, linestyle=":", alpha=0.8, zorder=1)
            for row, rate, score in zip(own, rates, scores, strict=True):
                style = styles[row.model]
                axis.scatter(
                    rate, score, s=42, marker=MARKERS[style.shape], edgecolors=colour(style.colour), label=row.model,
                    facecolors=colour(style.colour) if row.vocabulary else "none", linewidths=1.4, zorder=2,
                )  # fmt: skip
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel("bit rate, bit/s")
        axis.set_ylabel(_axis_label(reported_metrics()[rows[0].metric]))
        axis.margins(x=0.08)
        axis.grid(which="major")
        add_legend(axis)

    names = [row.model for own in by_entry.values() for row in own]
    heights = 4.0 + legend_height(names), 3.0 + legend_height(names, NARROW)
    return render("bit-rate", draw, size=(WIDTH, heights[0]), narrow=heights[1])


def training_figure(curves: Mapping[str, Mapping[str, TrainingCurve] | None], styles: Mapping[str, ModelStyle]) -> str:
    """Draw each model's loss, learning rate and gradient norm by epoch: the mean over runs, and a band over all."""
    from matplotlib.ticker import MaxNLocator

    labels = {"loss": "training loss", "learning_rate": "learning rate", "gradient_norm": "gradient norm"}
    shown = [model for model, of_model in curves.items() if of_model is not None]

    def draw(axes: Sequence["Axes"]) -> None:
        for axis, (name, label) in zip(axes, labels.items(), strict=True):
            for model, of_model in curves.items():
                if of_model is None:
                    continue
                curve, tint, line = of_model[name], colour(styles[model].colour), LINES[styles[model].shape]
                axis.fill_between(curve.epochs, curve.lowest, curve.highest, color=tint, alpha=0.16, linewidth=0)
                axis.plot(curve.epochs, curve.mean, line, color=tint, linewidth=1.8, label=model)
            axis.set_xlabel("epoch")
            axis.set_ylabel(label)
            axis.set_xlim(left=1)
            axis.set_ylim(bottom=0)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.grid(axis="y")
        add_legend(axes[0])

    heights = 2.8 + legend_height(shown), 3 * 2.4 + legend_height(shown, NARROW)
    return render("training", draw, columns=3, size=(WIDTH, heights[0]), narrow=heights[1])


def confusion_figure(name: str, counts: np.ndarray, classes: Sequence[str]) -> str:
    """Draw counts (actual, predicted); a cell's opacity follows the share of the actual class's clips."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    numbered = len(classes) <= _MOST_NUMBERED

    def draw(axes: Sequence["Axes"]) -> None:
        axis = axes[0]
        for row, column in zip(*np.nonzero(counts), strict=True):
            share = float(shares[row, column])
            face = colour(0 if row == column else NUM_COLOURS - 1)
            # A single lost clip of a hundred must still be seen, hence the square root.
            axis.add_patch(rectangle(column - 0.47, row - 0.47, 0.94, face, 0.08 + 0.72 * share**0.5))
            if numbered:
                axis.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=8.5)
        size, names = len(classes), [class_label(name) for name in classes]
        axis.set_xlim(-0.5, size - 0.5)
        axis.set_ylim(size - 0.5, -0.5)
        axis.set_aspect("equal")
        font = 8.5 if numbered else 6
        axis.set_xticks(range(size), names, rotation=90 if size > 6 else 0, fontsize=font)
        axis.set_yticks(range(size), names, fontsize=font)
        axis.tick_params(length=0)
        axis.set_xlabel("predicted class")
        axis.set_ylabel("actual class")
        for spine in axis.spines.values():
            spine.set_visible(False)

    side = min(9.0, max(3.4, (0.33 if numbered else 0.15) * len(classes) + 1.4))
    fits = len(classes) <= _MOST_NARROW
    return render(f"confusion-{name}", draw, size=(side, side), narrow=NARROW + 0.1 if fits else None)


def reliability_figure(name: str, reliability: Reliability) -> str:
    """Draw the share that is right against the probability; the area of a dot follows the number of probabilities."""
    used = reliability.counts > 0
    sizes = 14 + 240 * reliability.counts[used] / reliability.counts.sum()

    def draw(axes: Sequence["Axes"]) -> None:
        axis = axes[0]
        axis.plot([0, 1], [0, 1], ":", color=LINE, linewidth=1.6)
        pairs = reliability.probabilities[used], reliability.shares[used]
        axis.plot(*pairs, color=colour(0), linewidth=1.4)
        axis.scatter(*pairs, s=sizes, color=colour(0), alpha=0.6, linewidths=0)
        axis.set_xlim(-0.03, 1.03)
        axis.set_ylim(-0.03, 1.03)
        axis.set_aspect("equal")
        axis.set_xlabel("probability")
        axis.set_ylabel("share that is right")
        axis.grid()

    return render(f"reliability-{name}", draw, size=(3.6, 3.4), narrow=3.2)


def class_figure(rows: Mapping[str, Sequence[ClassRow]], styles: Mapping[str, ModelStyle]) -> str:
    """Draw each class's average precision, one dot a model, hardest class first."""
    names = [row.name for row in next(iter(rows.values()))]
    values = np.array([[row.average_precision for row in model] for model in rows.values()])  # (model, class)
    present = np.flatnonzero(np.isfinite(values).all(axis=0))
    order = present[np.argsort(values[:, present].mean(axis=0), kind="stable")][:_MOST_CLASSES]

    def draw(axes: Sequence["Axes"]) -> None:
        axis = axes[0]
        for line, position in enumerate(order):
            column = 100 * values[:, position]
            axis.plot([column.min(), column.max()], [line, line], color=LINE, linewidth=2.5, zorder=1)
        for index, model in enumerate(rows):
            axis.scatter(
                100 * values[index, order], range(len(order)), s=38, color=colour(styles[model].colour), label=model,
                marker=MARKERS[styles[model].shape], alpha=0.85, linewidths=0, zorder=2,
            )  # fmt: skip
        axis.set_yticks(range(len(order)), [class_label(names[position]) for position in order])
        axis.set_ylim(len(order) - 0.4, -0.6)
        axis.tick_params(axis="y", length=0)
        axis.set_xlabel("average precision, %", loc="right")  # beside long names there is no room for it in the middle
        axis.grid(axis="x")
        axis.spines["left"].set_visible(False)
        add_legend(axis)

    height, shown = 0.27 * len(order) + 0.8, list(rows)
    sizes = height + legend_height(shown), height + legend_height(shown, NARROW)
    return render("classes", draw, size=(WIDTH, sizes[0]), narrow=sizes[1])


def perplexity_figure(rows: Mapping[str, Sequence[NgramPerplexity]]) -> str:
    """Draw the perplexity of each class's tokens under n-gram models of each order, the lowest perplexity first."""
    from matplotlib.ticker import LogLocator, NullLocator

    shown = list(rows)[:_MOST_CLASSES]

    def draw(axes: Sequence["Axes"]) -> None:
        axis = axes[0]
        for line, name in enumerate(shown):
            values = [row.perplexity for row in rows[name]]
            axis.plot([min(values), max(values)], [line, line], color=LINE, linewidth=2.5, zorder=1)
        for index, row in enumerate(rows[shown[0]]):
            values = [rows[name][index].perplexity for name in shown]
            axis.scatter(
                values, range(len(shown)), s=38, color=colour(index), label=f"order {row.order}", linewidths=0, zorder=2
            )
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_yticks(range(len(shown)), [class_label(name) for name in shown])
        axis.set_ylim(len(shown) - 0.4, -0.6)
        axis.tick_params(axis="y", length=0)
        axis.set_xlabel("n-gram perplexity")
        axis.grid(axis="x")
        axis.spines["left"].set_visible(False)
        add_legend(axis)

    height = 0.27 * len(shown) + 1.05
    return render("perplexity", draw, size=(WIDTH, height), narrow=height)


def length_figure(shares: Mapping[str, np.ndarray]) -> str:
    """Draw the distribution of token lengths in base tokens, one line a fold; `shares` are (length,)."""

    def draw(axes: Sequence["Axes"]) -> None:
        axis = axes[0]
        for position, (fold, values) in enumerate(shares.items()):
            lengths = np.flatnonzero(values)
            axis.plot(
                lengths, 100 * values[lengths], "o-", color=colour(position), linewidth=1.6, markersize=4,
                alpha=0.85, label=f"fold {fold}",
            )  # fmt: skip
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlabel("length of a token, base tokens")
        axis.set_ylabel("share of all tokens, %")
        axis.grid(which="major")
        axis.legend(loc="lower left")

    return render("lengths", draw, size=(5.6, 3.7), narrow=2.9)


def rank_figure(counts: Mapping[str, np.ndarray], slopes: Mapping[str, float]) -> str:
    """Draw the frequency of each token against its rank, one line a vocabulary, both axes logarithmic.

    `counts` holds by label the frames of each token, any shape; natural languages follow a line of slope -1 (Zipf, 1949).
    """

    def draw(axes: Sequence["Axes"]) -> None:
        axis = axes[0]
        for position, (label, values) in enumerate(counts.items()):
            used = np.sort(values[values > 0].ravel())[::-1]
            axis.plot(
                np.arange(1, used.size + 1), used / used.sum(), color=colour(position), linewidth=1.6, alpha=0.85,
                label=f"{label}: slope {slopes[label]:.2f}",
            )  # fmt: skip
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("rank of the token")
        axis.set_ylabel("share of all frames")
        axis.grid(which="major")
        axis.legend(loc="lower left")

    return render("ranks", draw, size=(5.6, 3.7), narrow=3.2)


def codebook_figure(codes: np.ndarray) -> str:
    """Draw the log-mel spectrum of each token: codes (code, mel) as columns, the lowest spectral centroid on the left."""
    n_mels = codes.shape[1]
    picture = codes[np.argsort(centres(codes), kind="stable")].T
    low, high = np.percentile(picture, [2, 98])

    def draw(axes: Sequence["Axes"]) -> None:
        axis = axes[0]
        axis.imshow(picture, origin="lower", aspect="auto", cmap="magma", vmin=low, vmax=high, interpolation="nearest")
        axis.set_xlabel("token, by spectral centroid")
        axis.set_ylabel("mel band")
        axis.set_yticks([0, n_mels // 2, n_mels - 1], ["0", str(n_mels // 2), str(n_mels - 1)])
        for spine in axis.spines.values():
            spine.set_visible(False)

    return render("codebook", draw, size=(5.6, 3.7), narrow=2.7)


def class_token_figure(rates: np.ndarray, classes: Sequence[str]) -> str:
    """Draw the class distribution of each token: `rates` (token, class) as columns, tokens by their dominant class."""
    order = np.lexsort((-rates.max(axis=1), rates.argmax(axis=1)))

    def draw(axes: Sequence["Axes"]) -> None:
        axis = axes[0]
        axis.imshow(np.sqrt(rates[order].T), aspect="auto", cmap="magma", vmin=0, vmax=1, interpolation="nearest")
        axis.set_xlabel("token, by dominant class")
        axis.set_yticks(range(len(classes)), [class_label(name) for name in classes])
        axis.tick_params(axis="y", length=0)
        for spine in axis.spines.values():
            spine.set_visible(False)

    height = max(2.6, 0.21 * len(classes) + 0.7)
    return render("classes-of-tokens", draw, size=(5.6, height), narrow=height)


def centres(codes: np.ndarray) -> np.ndarray:
    """Return the spectral centroid, in mel bands, of each code (code, mel) in log-mel units: (code,)."""
    weights = np.exp((codes - codes.max(axis=1, keepdims=True)) / max(float(codes.std()), 1e-6))
    centre: np.ndarray = (weights * np.arange(codes.shape[1])).sum(axis=1) / weights.sum(axis=1)
    return centre
