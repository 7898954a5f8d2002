"""From stored predictions to the numbers that are quoted: one row a run, means over folds, and ten scalars.

Conventions: a *run* is one model on one fold with one seed, measured on the fold's test clips. Means and deviations are
over folds: the seeds of a fold are averaged first, so a deviation says how much folds differ, and it is the sample
standard deviation (ddof = 1), undefined for a single fold. The deviation between seeds is that of each seed's mean over
folds. An ensemble is one run a fold, over all seeds of its models, and is summarised like a model. NaN means undefined.
"""

import csv
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, NonNegativeInt, model_validator

from pipeline.artifacts.files import replacing
from pipeline.errors import ArtifactError, ParamsError
from pipeline.experiment_params import ExperimentParams
from pipeline.params import Params

if TYPE_CHECKING:
    import rich.table

ALL_SEEDS = "all"  # in the place of a seed: an ensemble's run
METRICS = ("accuracy", "mAP", "AUC", "d_prime", "macro_precision", "macro_recall", "macro_f1", "micro_f1")


class ReportParams(Params):
    """What the report puts first, and how many clips it shows."""

    headline: list[str] = Field(min_length=1, max_length=2)  # models in metrics.json, before the first ensemble
    examples: NonNegativeInt  # clips shown with audio, pictures and predictions
    worst: NonNegativeInt  # mistakes shown likewise, the most confident first

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.headline)) < len(self.headline):
            raise ValueError(f"headline: expected different models, found {self.headline[0]} twice")
        return self

    def check_against(self, experiment: ExperimentParams) -> None:
        """Raise ParamsError when a headline model is not in the experiment."""
        for name in self.headline:
            if name not in experiment.models:
                known = ", ".join(experiment.models)
                raise ParamsError(f"report.headline: expected models of experiment ({known}), found {name!r}")


@dataclass(frozen=True)
class Run:
    """One row of `summary.csv`."""

    model: str
    reads: str  # frames, tokens, or both (an ensemble)
    fold: str
    seed: str  # a number, or ALL_SEEDS
    num_clips: int  # test clips measured
    num_present_classes: int  # that mAP is the mean of
    accuracy: float
    mAP: float  # noqa: N815 - the name that everybody knows
    AUC: float
    d_prime: float
    macro_precision: float
    macro_recall: float
    macro_f1: float
    micro_f1: float
    num_parameters: int
    clips_seen: int  # in training, repeats counted
    seconds: float  # of training


@dataclass(frozen=True)
class ModelSummary:
    """A model, or an ensemble, over all folds."""

    model: str
    ensemble: bool
    reads: str
    num_folds: int
    num_seeds: int
    num_clips: int  # test clips of all folds together
    mean: dict[str, float]  # by metric
    deviation: dict[str, float]  # between folds
    seed_deviation: dict[str, float]  # between seeds
    num_parameters: int
    clips_seen: int  # a run, mean
    seconds: float  # a run, mean


def summarise(runs: Sequence[Run]) -> list[ModelSummary]:
    """Return each model's means and deviations over folds, in the order of its first run."""
    summaries = []
    for model in dict.fromkeys(run.model for run in runs):
        own = [run for run in runs if run.model == model]
        folds = {fold: [run for run in own if run.fold == fold] for fold in dict.fromkeys(run.fold for run in own)}
        seeds = {seed: [run for run in own if run.seed == seed] for seed in dict.fromkeys(run.seed for run in own)}
        mean, deviation, seed_deviation = {}, {}, {}
        for metric in METRICS:
            values = [_mean([getattr(run, metric) for run in fold]) for fold in folds.values()]
            mean[metric], deviation[metric] = _mean(values), _deviation(values)
            seed_deviation[metric] = _deviation(
                [_mean([getattr(run, metric) for run in runs]) for runs in seeds.values()]
            )
        summaries.append(
            ModelSummary(
                model=model,
                ensemble=own[0].seed == ALL_SEEDS,
                reads=own[0].reads,
                num_folds=len(folds),
                num_seeds=len(seeds),
                num_clips=sum(fold[0].num_clips for fold in folds.values()),
                mean=mean,
                deviation=deviation,
                seed_deviation=seed_deviation,
                num_parameters=max(run.num_parameters for run in own),
                clips_seen=round(statistics.fmean(run.clips_seen for run in own)),
                seconds=statistics.fmean(run.seconds for run in own),
            )
        )
    return summaries


def headline_metrics(summaries: Sequence[ModelSummary], headline: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return at most ten scalars for `dvc metrics` and `dvc exp show`, with 4 decimals; undefined ones are left out."""
    by_model = {summary.model: summary for summary in summaries}
    metrics: dict[str, dict[str, float]] = {}
    for model in headline:
        summary = by_model[model]
        metrics[model] = {}
        for name in ("accuracy", "mAP"):
            metrics[model][name] = summary.mean[name]
            metrics[model][f"{name}_deviation"] = summary.deviation[name]
    for summary in [summary for summary in summaries if summary.ensemble][:1]:
        metrics[summary.model] = {name: summary.mean[name] for name in ("accuracy", "mAP")}
    return {
        model: {name: round(value, 4) for name, value in values.items() if math.isfinite(value)}
        for model, values in metrics.items()
    }


def write_metrics(path: Path, metrics: dict[str, dict[str, float]]) -> None:
    """Write the scalars as nested JSON: model, then metric."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


def write_summary(path: Path, runs: Sequence[Run]) -> None:
    """Write one row a run as CSV, floats with 6 decimals, undefined values as `nan`."""
    names = [field.name for field in fields(Run)]
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        for run in runs:
            row = {name: f"{value:.6f}" if isinstance(value, float) else value for name, value in asdict(run).items()}
            writer.writerow(row)


def read_summary(path: Path) -> list[Run]:
    """Read `summary.csv` again. Raises ArtifactError when it is missing or has other columns."""
    names = [field.name for field in fields(Run)]
    if not path.exists():
        raise ArtifactError(path, "file", expected="the table of runs", found="no file", stage="report")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    if reader.fieldnames != names:
        raise ArtifactError(path, "columns", expected=", ".join(names), found=reader.fieldnames, stage="report")
    kinds: dict[str, Callable[[str], Any]] = {f.name: {str: str, int: int, float: float}[f.type] for f in fields(Run)}  # type: ignore[index]
    return [Run(**{name: kinds[name](text) for name, text in row.items()}) for row in rows]


def results_table(runs: Sequence[Run]) -> "rich.table.Table":
    """Return the results as a table for the terminal: means over folds, with the sample deviation between folds."""
    import rich.table

    summaries = summarise(runs)
    first = summaries[0]
    seeds = f"{first.num_seeds} seed{'s' * (first.num_seeds != 1)}"
    folds = f"{first.num_folds} fold{'s' * (first.num_folds != 1)}"
    table = rich.table.Table(
        title=f"Test clips: {first.num_clips:,} over {folds}, {seeds}",
        caption="mean ± standard deviation between folds (ddof 1, seeds averaged first); training time a run; an ensemble "
        "averages the probabilities of all seeds of its models",
        title_style="bold",
        caption_style="dim",
    )
    several = first.num_seeds > 1
    for name in ("model", "reads"):
        table.add_column(name)
    seeds_column = ("± seeds",) if several else ()
    for name in ("accuracy", *seeds_column, "mAP", *seeds_column, "AUC", "d'", "parameters", "clips seen", "train"):
        table.add_column(name, justify="right", no_wrap=True)
    best = max(summary.mean["accuracy"] for summary in summaries)
    for summary, before in zip(summaries, [None, *summaries], strict=False):
        if summary.ensemble and before and not before.ensemble:
            table.add_section()
        cells = []
        for metric in ("accuracy", "mAP"):
            cells.append(spread(summary, metric, percent=True))
            if several:
                between = summary.seed_deviation[metric]
                cells.append(f"{100 * between:.1f} %" if math.isfinite(between) else "")
        table.add_row(
            summary.model,
            summary.reads,
            *cells,
            spread(summary, "AUC"),
            spread(summary, "d_prime", digits=2),
            f"{summary.num_parameters:,}",
            f"{summary.clips_seen:,}",
            duration(summary.seconds),
            style="bold" if summary.mean["accuracy"] == best else "",
        )
    return table


def spread(summary: ModelSummary, metric: str, *, percent: bool = False, digits: int = 3) -> str:
    """Spell a mean and its deviation: `93.2 ± 1.1 %`, `0.981 ± 0.004` (`digits`), `∞`, or `n/a`."""
    mean, deviation = summary.mean[metric], summary.deviation[metric]
    if math.isnan(mean):
        return "n/a"
    if math.isinf(mean):
        return "∞" if mean > 0 else "-∞"
    factor, digits, unit = (100, 1, " %") if percent else (1, digits, "")
    tail = f" ± {factor * deviation:.{digits}f}" if math.isfinite(deviation) else ""
    return f"{factor * mean:.{digits}f}{tail}{unit}"


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


def _deviation(values: Sequence[float]) -> float:
    usable = len(values) > 1 and all(math.isfinite(value) for value in values)
    return statistics.stdev(values) if usable else math.nan
