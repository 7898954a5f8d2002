"""`sonolex leaderboard`: models of the experiment by accuracy, or by mAP where clips have several labels, with their costs.

A second table has the scores of models on tokens against the same models on frames, by bit rate, as the report measures them
(`pipeline/reporting/bit_rates.py`). Tokens and bits per second of the first table are those of the second; bits are the
entropy of single tokens. Stored bytes are those of the training input: one fold's table of token sequences on disk, or all
log-mel frames.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table as Grid

from pipeline.artifacts.layout import Layout
from pipeline.artifacts.spectrogram import open_spectrogram
from pipeline.evaluation.metric_definition import Metric, primary_metric, reported_metrics, secondary_metric
from pipeline.grid import ExperimentParams
from pipeline.reporting.bit_rates import BitRate, bit_rate_cells, compared_with, read_bit_rates, spell_rate
from pipeline.reporting.summary import ModelSummary, read_summary, spread, summarise, training_times

RATES = ("codebooks", "tokens/s", "bit/s", "entropy, bit/s", "bytes/s")
COSTS = ("parameters", "tokens/s", "bits/s", "training clips/s", "stored")


@dataclass(frozen=True)
class Source:
    """An input of models, with its costs, means over folds."""

    tokens_per_second: float | None  # over all codebooks; None for frames
    bits_per_second: float | None
    num_bytes: int | None


_UNKNOWN = Source(None, None, None)


def open_sources(layout: Layout, experiment: ExperimentParams, compared: Sequence[BitRate]) -> dict[str, Source]:
    """Return the inputs by name: "" for frames, and each vocabulary's name for its token sequences.

    `compared` are the rows of the second table, which has the rates of tokens.
    """
    sources = {"": Source(None, None, _size(open_spectrogram(layout.spectrogram).frames_path))}
    rates = {row.vocabulary: row for row in compared}
    for name in experiment.vocabularies:
        paths = [layout.tokens(name, fold) for fold in experiment.folds]
        sizes = [_size(path) for path in paths if path.exists()]
        if name in rates and sizes:
            row = rates[name]
            sources[name] = Source(row.tokens_per_second, row.entropy_per_second, round(float(np.mean(sizes))))
    return sources


def rows(
    summaries: list[ModelSummary], sources: dict[str, Source], reads: dict[str, str], times: Mapping[str, float]
) -> list[list[str]]:
    """Return the table's cells, the lowest of the primary metric first, without ensembles.

    `reads` is the vocabulary of each model that reads tokens; other cells of costs are left empty. `times` is the seconds of
    training per run by model, where this machine has trained it; the cells of others are empty.
    """
    cells, metrics = [], shown_metrics(summaries)
    for summary in sorted(summaries, key=lambda summary: summary.mean[metrics[0].name]):
        if summary.ensemble:
            continue
        name = reads.get(summary.model) if summary.reads == "tokens" else ""
        source = _UNKNOWN if name is None else sources.get(name, _UNKNOWN)
        rates = [
            "" if rate is None else spell_rate(rate) for rate in (source.tokens_per_second, source.bits_per_second)
        ]
        seconds = times.get(summary.model)
        speed = f"{summary.clips_seen / seconds:,.0f}" if seconds else ""
        spreads = [spread(summary, metric.name) for metric in metrics]
        stored = "" if source.num_bytes is None else f"{source.num_bytes / 1e6:,.2f} MB"
        cells.append([summary.model, *spreads, f"{summary.num_parameters:,}", *rates, speed, stored])
    return cells


def shown_metrics(summaries: Sequence[ModelSummary]) -> tuple[Metric, Metric]:
    """Return the metric that models are sorted by, and the one beside it."""
    label_kind = summaries[0].label_kind
    return primary_metric(label_kind), secondary_metric(label_kind)


def columns(summaries: Sequence[ModelSummary]) -> tuple[str, ...]:
    """Return the heads of the table's columns."""
    labels = [metric.label for metric in shown_metrics(summaries)]
    return ("model", *(f"{name[0].lower()}{name[1:]}" for name in labels), *COSTS)


def run(layout: Layout, experiment: ExperimentParams, console: Console, *, markdown: bool) -> None:
    """Print the leaderboard of the last run. Raises SonolexError while there is none."""
    runs = read_summary(layout.summary)
    times = training_times(runs, layout.stage_reports)
    summaries = summarise(runs)
    compared = read_bit_rates(layout.bit_rates)
    cells = rows(summaries, open_sources(layout, experiment, compared), experiment.reads, times)
    _print(console, "The leaderboard", columns(summaries), cells, markdown=markdown)
    if any(row.vocabulary for row in compared):
        label = reported_metrics()[compared[0].metric].label
        heads = ("model", *RATES, f"{label[0].lower()}{label[1:]}", "on frames", "difference", "compared with")
        lines = [[row.model, *bit_rate_cells(row), compared_with(row)] for row in compared]
        console.print()
        _print(console, f"Tokens and frames by bit rate: {compared[0].corpus}", heads, lines, markdown=markdown)


def _print(
    console: Console, title: str, heads: Sequence[str], cells: Sequence[Sequence[str]], *, markdown: bool
) -> None:
    """Print a table, as wide as it is, or as Markdown."""
    if markdown:
        lines = [heads, ("---", *("---:" for _ in heads[1:])), *cells]
        console.print(
            "\n".join(f"| {' | '.join(line)} |" for line in lines), soft_wrap=True, markup=False, highlight=False
        )
        return
    table = Grid(title=title, title_style="bold")
    for number, name in enumerate(heads):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for line in cells:
        table.add_row(*line)
    console.width = max(console.width, console.measure(table, options=console.options.update(max_width=1000)).maximum)
    console.print(table)


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
