"""Data behind the charts, as small CSV files that `dvc plots show` and `dvc plots diff` draw.

    loss/<model>.csv        one row an epoch: mean loss over folds and seeds, its range, rate and gradients' norm
    confusion/<model>.csv   one row a test clip: actual, predicted (label kind one)
    per_class/<model>.csv   one row a class: means over folds

DVC draws one chart a file. Its title is the file's path, since dvc.yaml gives none: a title there would be that of every
model's chart.

Epochs count from 1.
"""

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.artifacts.curves import read_epochs
from pipeline.artifacts.files import replacing
from pipeline.artifacts.layout import Layout
from pipeline.evaluation.metric_functions import confusion_matrix
from pipeline.reporting.measuring import Experiment

CURVES = ("loss", "learning_rate", "gradient_norm")  # columns of every training run's `epochs.csv` that are drawn


@dataclass(frozen=True)
class TrainingCurve:
    """One number by epoch over all runs of a model; a run that stopped early is missing from later epochs."""

    epochs: list[int]  # from 1
    mean: list[float]
    lowest: list[float]
    highest: list[float]
    num_runs: list[int]


@dataclass(frozen=True)
class ClassRow:
    """One class of one model: means over the folds where the value is defined, NaN when there is none."""

    name: str
    num_positives: int  # test clips of all folds
    average_precision: float
    auc: float
    precision: float
    recall: float
    f1: float


def training_curves(layout: Layout, experiment: Experiment, model: str) -> dict[str, TrainingCurve] | None:
    """Read the CURVES of all folds and seeds of a model, by name; None for one that is fitted in one go.

    Raises ArtifactError naming a missing or broken table.
    """
    runs = [run for fold in experiment.params.folds for run in experiment.members(model, fold)]
    tables = [rows for rows in (read_epochs(layout.curves(run), CURVES) for run in runs) if rows is not None]
    return {name: _curve([[row[name] for row in rows] for rows in tables]) for name in CURVES} if tables else None


def _curve(runs: Sequence[Sequence[float]]) -> TrainingCurve:
    num_epochs = max(map(len, runs))
    values = [[run[epoch] for run in runs if epoch < len(run)] for epoch in range(num_epochs)]
    return TrainingCurve(
        epochs=list(range(1, num_epochs + 1)),
        mean=[math.fsum(numbers) / len(numbers) for numbers in values],
        lowest=[min(numbers) for numbers in values],
        highest=[max(numbers) for numbers in values],
        num_runs=[len(numbers) for numbers in values],
    )


def class_rows(experiment: Experiment, model: str) -> list[ClassRow]:
    """Return every class's scores, seeds averaged within a fold, then over folds; in the order of the class list."""
    params = experiment.params
    names = next(iter(experiment.tables.values())).metadata["classes"]
    rows = []
    for position, name in enumerate(names):
        by_fold = [[run.classes[position] for run in experiment.scores[model, fold]] for fold in params.folds]
        means = {
            key: _mean(_mean(getattr(scores, key) for scores in fold) for fold in by_fold)
            for key in ("average_precision", "auc", "precision", "recall", "f1")
        }
        rows.append(ClassRow(name, sum(fold[0].num_positives for fold in by_fold), **means))
    return rows


def confusion_counts(experiment: Experiment, model: str) -> np.ndarray:
    """Count test clips by (actual, predicted) over all folds, seeds averaged: shape (class, class), int64."""
    scored = [experiment.scored(model, fold) for fold in experiment.params.folds]
    return np.asarray(np.sum([confusion_matrix(clips.scores, clips.targets) for clips in scored], axis=0))


def write_plots(layout: Layout, experiment: Experiment) -> None:
    """Write all CSV files below the folder of plots in one step."""
    with replacing(layout.plots) as partial:
        for model in experiment.params.models:
            curves = training_curves(layout, experiment, model)
            if curves is None:
                continue
            loss, rate, norm = (curves[name] for name in CURVES)
            rates = [f"{value:.4g}" for value in rate.mean]  # six decimals would be too few
            columns = (loss.epochs, loss.mean, loss.lowest, loss.highest, loss.num_runs, rates, norm.mean)
            _write(
                partial / "loss" / f"{model}.csv",
                ("epoch", "loss", "lowest", "highest", "num_runs", "learning_rate", "gradient_norm"),
                zip(*columns, strict=True),
            )
        for model in experiment.models:
            rows = class_rows(experiment, model)
            names = ("class", "num_positives", "average_precision", "auc", "precision", "recall", "f1")
            _write(partial / "per_class" / f"{model}.csv", names, (tuple(vars(row).values()) for row in rows))
            if pairs := _decisions(experiment, model):
                _write(partial / "confusion" / f"{model}.csv", ("actual", "predicted"), pairs)


def _decisions(experiment: Experiment, model: str) -> list[tuple[str, str]]:
    """Return (actual, predicted) of every test clip, folds in order; empty when clips may have several classes."""
    pairs: list[tuple[str, str]] = []
    for fold in experiment.params.folds if experiment.runs[0].label_kind == "one" else ():
        clips = experiment.scored(model, fold)
        actual, predicted = clips.targets.argmax(axis=1), clips.scores.argmax(axis=1)
        pairs += [(clips.classes[a], clips.classes[p]) for a, p in zip(actual, predicted, strict=True)]
    return pairs


def _mean(values: Iterable[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan


def _write(path: Path, names: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([f"{value:.6f}" if isinstance(value, float) else value for value in row] for row in rows)
