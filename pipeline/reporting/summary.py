"""From stored predictions to the numbers that are quoted: one row a run, means over folds, and ten scalars.

Conventions: a *run* is one model on one fold with one seed, measured on the fold's test clips. Means and deviations are
over folds: the seeds of a fold are averaged first, so a deviation says how much folds differ, and it is the sample
standard deviation (ddof = 1), undefined for a single fold. The ensemble averages the probabilities of the headline
models, fold by fold and seed by seed, and is summarised like a model. NaN means undefined.
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
from pipeline.artifacts.model import read_card
from pipeline.artifacts.predictions import PREDICTIONS, open_predictions
from pipeline.artifacts.tables import Table
from pipeline.errors import ArtifactError, ParamsError
from pipeline.evaluation.ensemble import ScoredClips, average_predictions, score_clips
from pipeline.evaluation.metrics import Scores
from pipeline.experiment_params import ExperimentParams
from pipeline.params import Params

if TYPE_CHECKING:
    import rich.table

ENSEMBLE = "ensemble"
METRICS = ("accuracy", "mAP", "AUC", "d_prime", "macro_precision", "macro_recall", "macro_f1", "micro_f1")


class ReportParams(Params):
    """What the report puts first, and how many clips it shows."""

    headline: list[str] = Field(min_length=1, max_length=2)  # models in metrics.json; their ensemble is measured too
    examples: NonNegativeInt  # clips shown with audio, pictures and predictions
    worst: NonNegativeInt  # mistakes shown likewise, the most confident first

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.headline)) < len(self.headline):
            raise ValueError(f"headline: expected different models, found {self.headline[0]} twice")
        return self

    def check_against(self, experiment: ExperimentParams) -> None:
        """Raise ParamsError when a headline model is not in the experiment, or a model has the ensemble's name."""
        for name in self.headline:
            if name not in experiment.models:
                known = ", ".join(experiment.models)
                raise ParamsError(f"report.headline: expected models of experiment ({known}), found {name!r}")
        if ENSEMBLE in experiment.models:
            raise ParamsError(f"experiment: expected models with names other than {ENSEMBLE!r}, which the report uses")


@dataclass(frozen=True)
class Run:
    """One row of `summary.csv`."""

    model: str
    reads: str  # frames, tokens, or both (ensemble)
    fold: str
    seed: int
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
    """A model over all folds."""

    model: str
    reads: str
    num_folds: int
    num_seeds: int
    num_clips: int  # test clips of all folds together
    mean: dict[str, float]  # by metric
    deviation: dict[str, float]
    num_parameters: int
    clips_seen: int  # a run, mean
    seconds: float  # a run, mean


@dataclass(frozen=True, eq=False)
class Experiment:
    """All predictions of an experiment, opened, and what follows from them."""

    params: ExperimentParams
    headline: tuple[str, ...]
    tables: dict[tuple[str, str, int], Table]  # (model, fold, seed)
    cards: dict[tuple[str, str, int], dict[str, Any]]  # facts of the trained models
    runs: list[Run]
    scores: dict[tuple[str, str, int], Scores]

    @property
    def models(self) -> list[str]:
        """The models, and the ensemble behind them when there are two headline models."""
        return [*self.params.models, *([ENSEMBLE] if len(self.headline) > 1 else [])]

    def scored(self, model: str, fold: str) -> ScoredClips:
        """Return a model's test clips of a fold, with the probabilities of its seeds averaged."""
        members = self.headline if model == ENSEMBLE else (model,)
        return average_predictions([self.tables[m, fold, s] for m in members for s in self.params.seeds], "test")


def open_experiment(
    params: ExperimentParams, headline: Sequence[str], predictions_path: Path, models_path: Path
) -> Experiment:
    """Open every prediction of the experiment and measure it.

    Raises ArtifactError that names the file when one is missing, was made for another model, fold or seed, or by other
    weights than those in the model's folder.
    """
    grid = [(model, fold, seed) for model in params.models for fold in params.folds for seed in params.seeds]
    tables = {run: _open(predictions_path, *run) for run in grid}
    cards = {run: _open_card(models_path, tables[run], *run) for run in grid}
    _check_alike(tables)
    runs, scores = [], {}
    for run, table in tables.items():
        scores[run] = score_clips(table, "test").evaluate()
        reads = "tokens" if run[0] in params.token_models else "frames"
        card = cards[run]
        costs = card["num_parameters"], card["clips_seen"], card["seconds"]
        runs.append(_row(run, reads, scores[run], *costs))
    if len(headline) > 1:
        reads = " + ".join(dict.fromkeys("tokens" if m in params.token_models else "frames" for m in headline))
        for fold in params.folds:
            for seed in params.seeds:
                members = [(model, fold, seed) for model in headline]
                run = (ENSEMBLE, fold, seed)
                scores[run] = average_predictions([tables[m] for m in members], "test").evaluate()
                costs = tuple(
                    sum(cards[m][key] for m in members) for key in ("num_parameters", "clips_seen", "seconds")
                )
                runs.append(_row(run, reads, scores[run], *costs))
    return Experiment(params, tuple(headline), tables, cards, runs, scores)


def summarise(runs: Sequence[Run]) -> list[ModelSummary]:
    """Return each model's means and deviations over folds, in the order of its first run."""
    summaries = []
    for model in dict.fromkeys(run.model for run in runs):
        own = [run for run in runs if run.model == model]
        folds = {fold: [run for run in own if run.fold == fold] for fold in dict.fromkeys(run.fold for run in own)}
        mean, deviation = {}, {}
        for metric in METRICS:
            values = [_mean([getattr(run, metric) for run in fold]) for fold in folds.values()]
            mean[metric] = _mean(values)
            usable = len(values) > 1 and all(math.isfinite(value) for value in values)
            deviation[metric] = statistics.stdev(values) if usable else math.nan
        summaries.append(
            ModelSummary(
                model=model,
                reads=own[0].reads,
                num_folds=len(folds),
                num_seeds=len({run.seed for run in own}),
                num_clips=sum(fold[0].num_clips for fold in folds.values()),
                mean=mean,
                deviation=deviation,
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
    if ENSEMBLE in by_model:
        metrics[ENSEMBLE] = {name: by_model[ENSEMBLE].mean[name] for name in ("accuracy", "mAP")}
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
        caption="mean ± standard deviation between folds (ddof 1, seeds averaged first); training time a run",
        title_style="bold",
        caption_style="dim",
    )
    for name in ("model", "reads"):
        table.add_column(name)
    for name in ("accuracy", "mAP", "AUC", "d'", "parameters", "clips seen", "train"):
        table.add_column(name, justify="right", no_wrap=True)
    best = max(summary.mean["accuracy"] for summary in summaries)
    for summary in summaries:
        if summary.model == ENSEMBLE:
            table.add_section()
        table.add_row(
            summary.model,
            summary.reads,
            *(spread(summary, metric, percent=True) for metric in ("accuracy", "mAP")),
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


def _open(predictions_path: Path, model: str, fold: str, seed: int) -> Table:
    table = open_predictions(predictions_path / model / fold / f"{seed}.parquet")
    for key, expected in (("model", model), ("fold", fold), ("seed", seed)):
        if table.facts[key] != expected:
            raise PREDICTIONS.error(table.path, f"fact {key}", expected=expected, found=table.facts[key])
    return table


def _open_card(models_path: Path, predictions: Table, model: str, fold: str, seed: int) -> dict[str, Any]:
    """Read a trained model's facts without its weights, and check that these weights made the predictions."""
    path = models_path / model / fold / str(seed)
    card = read_card(path)
    if card["weights"] != predictions.facts["weights"]:
        expected = f"{card['weights']}, as {path}"
        raise PREDICTIONS.error(predictions.path, "fact weights", expected=expected, found=predictions.facts["weights"])
    return card


def _check_alike(tables: dict[tuple[str, str, int], Table]) -> None:
    """Raise unless all predictions are over the same classes."""
    first = next(iter(tables.values()))
    for table in tables.values():
        for key in ("classes", "label_kind"):
            if table.facts[key] != first.facts[key]:
                expected = f"{first.facts[key]}, as {first.path}"
                raise PREDICTIONS.error(table.path, f"fact {key}", expected=expected, found=table.facts[key])


def _row(
    run: tuple[str, str, int], reads: str, scores: Scores, num_parameters: int, clips_seen: int, seconds: float
) -> Run:
    model, fold, seed = run
    return Run(
        model=model,
        reads=reads,
        fold=fold,
        seed=seed,
        num_clips=scores.num_clips,
        num_present_classes=scores.num_present_classes,
        accuracy=scores.accuracy,
        mAP=scores.mean_average_precision,
        AUC=scores.mean_auc,
        d_prime=scores.d_prime,
        macro_precision=scores.macro_precision,
        macro_recall=scores.macro_recall,
        macro_f1=scores.macro_f1,
        micro_f1=scores.micro_f1,
        num_parameters=num_parameters,
        clips_seen=clips_seen,
        seconds=seconds,
    )
