"""Results as tables: one row a run, means over folds, and a few scalars for DVC.

Conventions: a *run* is one model on one fold with one seed, measured on the fold's test clips. Means and deviations are
over folds: the seeds of a fold are averaged first, so a deviation says how much folds differ, and it is the sample
standard deviation (ddof = 1), undefined for a single fold. There the 95 % interval over the fold's test clips stands in its
place (`pipeline/evaluation/intervals.py`), of several seeds the mean of their limits. The deviation between seeds is that of
each seed's mean over folds. An ensemble is one run a fold, over all seeds of its models, and is summarised like a model. NaN
means undefined.

How long training took is no part of these tables, which are artifacts: `training_times` reads it from this machine's stage
reports for whoever shows them.
"""

import csv
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from pipeline.artifacts.clips import LabelKind
from pipeline.artifacts.files import replacing
from pipeline.artifacts.layout import ALL_SEEDS
from pipeline.errors import ArtifactError, SonolexError
from pipeline.evaluation.metric_definition import Interval, Metric, primary_metric, reported_metrics
from pipeline.execution.stage import training_seconds

if TYPE_CHECKING:
    import rich.table

LIMITS = Interval._fields


@dataclass(frozen=True)
class Run:
    """One row of `summary.csv`; a metric has a column of its name, and with an interval two more: NAME_low, NAME_high."""

    model: str
    label_kind: LabelKind
    reads: str  # frames, tokens, or both (an ensemble)
    fold: str
    seed: str  # a number, or ALL_SEEDS
    num_clips: int  # test clips measured
    num_present_classes: int  # that mAP is the mean of
    values: dict[str, float]  # by metric
    intervals: dict[str, Interval]  # 95 % over the test clips, of the metrics that have one
    num_parameters: int
    clips_seen: int  # in training, repeats counted
    weights: str  # digest of those that predict; empty = an ensemble


@dataclass(frozen=True)
class ModelSummary:
    """A model, or an ensemble, over all folds."""

    model: str
    label_kind: LabelKind
    ensemble: bool
    reads: str
    num_folds: int
    num_seeds: int
    num_clips: int  # test clips of all folds together
    mean: dict[str, float]  # by metric
    deviation: dict[str, float]  # between folds
    interval: dict[str, Interval]  # of the metrics that have one, with a single fold; else empty
    seed_deviation: dict[str, float]  # between seeds
    num_parameters: int
    clips_seen: int  # a run, mean


def summarise(runs: Sequence[Run]) -> list[ModelSummary]:
    """Return each model's means and deviations over folds, in the order of its first run."""
    summaries = []
    for model in dict.fromkeys(run.model for run in runs):
        own = [run for run in runs if run.model == model]
        folds = {fold: [run for run in own if run.fold == fold] for fold in dict.fromkeys(run.fold for run in own)}
        seeds = {seed: [run for run in own if run.seed == seed] for seed in dict.fromkeys(run.seed for run in own)}
        mean, deviation, seed_deviation = {}, {}, {}
        for metric in own[0].values:
            values = [_mean([run.values[metric] for run in fold]) for fold in folds.values()]
            mean[metric], deviation[metric] = _mean(values), _deviation(values)
            seed_deviation[metric] = _deviation(
                [_mean([run.values[metric] for run in runs]) for runs in seeds.values()]
            )
        summaries.append(
            ModelSummary(
                model=model,
                label_kind=own[0].label_kind,
                ensemble=own[0].seed == ALL_SEEDS,
                reads=own[0].reads,
                num_folds=len(folds),
                num_seeds=len(seeds),
                num_clips=sum(fold[0].num_clips for fold in folds.values()),
                mean=mean,
                deviation=deviation,
                interval={metric: _interval(own, metric) for metric in own[0].intervals} if len(folds) == 1 else {},
                seed_deviation=seed_deviation,
                num_parameters=max(run.num_parameters for run in own),
                clips_seen=round(statistics.fmean(run.clips_seen for run in own)),
            )
        )
    return summaries


def headline_metrics(
    summaries: Sequence[ModelSummary],
    headline: Sequence[str],
    variants: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> dict[str, dict[str, float]]:
    """Return the scalars for `dvc metrics` and `dvc exp show`, with 4 decimals; undefined ones are left out.

    These are, of the metrics of `Metric.headline`, means and deviations of the models `headline`, and means of their
    `variants` (model -> names), and of the first ensemble: with the standard metrics at most twelve numbers, and four for
    each model with variants.
    """
    by_model = {summary.model: summary for summary in summaries}
    label_kind = summaries[0].label_kind
    names = [metric.name for metric in reported_metrics().values() if label_kind in metric.headline]
    metrics: dict[str, dict[str, float]] = {}
    for model in headline:
        summary = by_model[model]
        metrics[model] = {}
        for name in names:
            metrics[model][name] = summary.mean[name]
            metrics[model][f"{name}_deviation"] = summary.deviation[name]
        metrics[model]["num_clips"] = summary.num_clips  # the ensemble's, too
        for variant in variants.get(model, []):
            metrics[variant] = {name: by_model[variant].mean[name] for name in names}
    for summary in [summary for summary in summaries if summary.ensemble][:1]:
        metrics[summary.model] = {name: summary.mean[name] for name in names}
    return {
        model: {name: round(value, 4) for name, value in values.items() if math.isfinite(value)}
        for model, values in metrics.items()
    }


def defined_metrics(summaries: Sequence[ModelSummary]) -> list[Metric]:
    """Return all metrics but those that are undefined for every model, as of another label kind."""
    return [
        metric
        for metric in reported_metrics().values()
        if not all(math.isnan(summary.mean[metric.name]) for summary in summaries)
    ]


def table_metrics(summaries: Sequence[ModelSummary]) -> list[Metric]:
    """Return the metrics that tables show, as far as they are defined."""
    return [metric for metric in defined_metrics(summaries) if metric.in_tables]


def write_metrics(path: Path, metrics: dict[str, dict[str, float]]) -> None:
    """Write the scalars as nested JSON: model, then metric."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


def write_summary(path: Path, runs: Sequence[Run]) -> None:
    """Write one row a run as CSV, floats with 6 decimals, undefined values as `nan`."""
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _columns(), lineterminator="\n")
        writer.writeheader()
        for run in runs:
            row = asdict(run) | run.values
            for metric, interval in run.intervals.items():
                row |= {f"{metric}_{limit}": value for limit, value in interval._asdict().items()}
            cells = {name: row[name] for name in _columns()}
            writer.writerow({n: f"{value:.6f}" if isinstance(value, float) else value for n, value in cells.items()})


def read_summary(path: Path) -> list[Run]:
    """Read `summary.csv` again. Raises SonolexError before the first run, and ArtifactError for other columns."""
    if not path.exists():
        raise SonolexError(f"{path}: expected the results of a run, found none; `dvc repro` runs the experiment")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    if reader.fieldnames != _columns():
        expected = ", ".join(_columns())
        raise ArtifactError(path, "columns", expected=expected, found=reader.fieldnames, stage="report")
    return [_run(row) for row in rows]


def _columns() -> list[str]:
    """Return the columns of `summary.csv`: those of metrics stand in the place of the two fields that hold them."""
    names = [field.name for field in fields(Run)]
    place = names.index("values")
    metrics = [
        column
        for metric in reported_metrics().values()
        for column in (metric.name, *(f"{metric.name}_{limit}" for limit in LIMITS if metric.interval))
    ]
    return [*names[:place], *metrics, *names[place + 2 :]]


def _run(row: Mapping[str, str]) -> Run:
    metrics = reported_metrics()
    return Run(
        model=row["model"],
        label_kind=cast(LabelKind, row["label_kind"]),
        reads=row["reads"],
        fold=row["fold"],
        seed=row["seed"],
        num_clips=int(row["num_clips"]),
        num_present_classes=int(row["num_present_classes"]),
        values={name: float(row[name]) for name in metrics},
        intervals={
            name: Interval(*(float(row[f"{name}_{limit}"]) for limit in LIMITS))
            for name, metric in metrics.items()
            if metric.interval
        },
        num_parameters=int(row["num_parameters"]),
        clips_seen=int(row["clips_seen"]),
        weights=row["weights"],
    )


def training_times(runs: Sequence[Run], reports_path: Path) -> dict[str, float]:
    """Return model -> seconds of training a run, mean, by this machine's stage reports.

    Models of which a run is missing there are left out: in a clone all are.
    """
    found: dict[str, list[float | None]] = {}
    for run in runs:
        if run.weights:
            seconds = training_seconds(reports_path, f"{run.model}/{run.fold}/{run.seed}", run.weights)
            found.setdefault(run.model, []).append(seconds)
    measured = {model: [value for value in values if value is not None] for model, values in found.items()}
    return {m: statistics.fmean(values) for m, values in measured.items() if len(values) == len(found[m])}


def results_table(runs: Sequence[Run], times: Mapping[str, float] = MappingProxyType({})) -> "rich.table.Table":
    """Return the results as a table for the terminal: means over folds, with what `spread` says of their uncertainty.

    `times` are seconds of training a run by model, as far as they are known.
    """
    import rich.table

    summaries = summarise(runs)
    first = summaries[0]
    seeds = f"{first.num_seeds} seed{'s' * (first.num_seeds != 1)}"
    folds = f"{first.num_folds} fold{'s' * (first.num_folds != 1)}"
    table = rich.table.Table(
        title=f"Test clips: {first.num_clips:,} over {folds}, {seeds}",
        caption=f"{uncertainty(first)}; training time a run, where this machine trained it; an ensemble averages the "
        "probabilities of all seeds of its models",
        title_style="bold",
        caption_style="dim",
    )
    several, metrics = first.num_seeds > 1, table_metrics(summaries)
    for name in ("Model", "Reads"):
        table.add_column(name)
    for metric in metrics:
        for name in (metric.label, *(["± seeds"] if several and first.label_kind in metric.headline else [])):
            table.add_column(name, justify="right", no_wrap=True)
    for name in ("Parameters", "Clips seen", "Training time"):
        table.add_column(name, justify="right", no_wrap=True)
    primary = primary_metric(first.label_kind).name
    best = max(summary.mean[primary] for summary in summaries)
    for summary, before in zip(summaries, [None, *summaries], strict=False):
        if summary.ensemble and before and not before.ensemble:
            table.add_section()
        cells = []
        for metric in metrics:
            cells.append(spread(summary, metric.name))
            if several and first.label_kind in metric.headline:
                between = spell_seed_deviation(summary, metric.name)
                cells.append(f"{between}{' %' * metric.percent}" if between else "")
        table.add_row(
            summary.model,
            summary.reads,
            *cells,
            f"{summary.num_parameters:,}",
            f"{summary.clips_seen:,}",
            duration(times[summary.model]) if summary.model in times else "",
            style="bold" if summary.mean[primary] == best else "",
        )
    return table


def spread(summary: ModelSummary, metric: str) -> str:
    """Spell a mean and its uncertainty: `93.2 ± 1.1 %`, `93.2 [90.1, 95.4] %`, `0.981 ± 0.004`, `∞`, or `n/a`."""
    unit = "%" if reported_metrics()[metric].percent else ""
    return " ".join(filter(None, (*spread_parts(summary, metric), unit)))


def spread_parts(summary: ModelSummary, metric: str) -> tuple[str, str]:
    """Spell a mean, and its uncertainty by itself: the deviation between folds, or the interval of the only one."""
    about, mean, interval = reported_metrics()[metric], summary.mean[metric], summary.interval.get(metric)
    if math.isnan(mean):
        return "n/a", ""
    if math.isinf(mean):
        return ("∞" if mean > 0 else "-∞"), ""
    deviation = about.spell(summary.deviation[metric])
    tail = f"± {deviation}" if deviation else ""
    if interval and all(map(math.isfinite, interval)):
        tail = f"[{about.spell(interval.low)}, {about.spell(interval.high)}]"
    return about.spell(mean), tail


def spell_seed_deviation(summary: ModelSummary, metric: str) -> str:
    """Spell the deviation between seeds: `1.1`, or "" where there is none."""
    return reported_metrics()[metric].spell(summary.seed_deviation[metric])


def uncertainty(summary: ModelSummary) -> str:
    """Say what stands beside the means of summaries of as many folds."""
    if summary.num_folds > 1:
        return "mean ± standard deviation between folds (ddof 1, seeds averaged first)"
    share = "accuracy" if summary.label_kind == "one" else "exact match"
    return f"in brackets the 95 % interval over test clips: Wilson's for {share}, by bootstrap for mAP"


def duration(seconds: float) -> str:
    """Spell a time: `8.4 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _mean(values: Sequence[float]) -> float:
    """Return the mean; unlike `statistics.fmean`, NaN for infinities of both signs (d-prime at AUC 1 and 0)."""
    return sum(values) / len(values)


def _interval(runs: Sequence[Run], metric: str) -> Interval:
    """Return the mean limits of the runs of one fold."""
    return Interval(*(_mean(limits) for limits in zip(*(run.intervals[metric] for run in runs), strict=True)))


def _deviation(values: Sequence[float]) -> float:
    usable = len(values) > 1 and all(math.isfinite(value) for value in values)
    return statistics.stdev(values) if usable else math.nan
