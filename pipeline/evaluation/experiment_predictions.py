"""All predictions of an experiment, opened together: what its stages `thresholds`, `attention` and `report` start from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.artifacts.layout import ALL_SEEDS, Layout, ModelId, RunId
from pipeline.artifacts.predictions import PREDICTIONS, PredictionTable, open_predictions, variant_tables
from pipeline.artifacts.thresholds import Thresholds, open_thresholds
from pipeline.evaluation.ensemble import ScoredClips, average_predictions
from pipeline.grid import ExperimentParams


@dataclass(frozen=True, eq=False)
class ExperimentPredictions:
    """The predictions of every run, and of its variants where it keeps epochs.

    An ensemble averages the probabilities of all its models' predictions for a fold, of every seed, so that one model alone
    makes an ensemble of its seeds.
    """

    params: ExperimentParams
    tables: dict[RunId, PredictionTable]
    thresholds: Thresholds | None  # of decisions; None: not needed with one label a clip, or not fitted yet

    @property
    def ensembles(self) -> dict[str, list[str]]:
        """The ensembles with their models."""
        return {ensemble.name: ensemble.models for ensemble in self.params.ensembles}

    @property
    def models(self) -> list[str]:
        """The models, and the ensembles behind them."""
        return [*self.params.models, *self.ensembles]

    @property
    def variants(self) -> dict[str, list[str]]:
        """The models whose runs keep epochs, with the names of their variants."""
        found: dict[str, list[str]] = {}
        for model in dict.fromkeys(run.model for run in self.tables if run.model.variant):
            found.setdefault(model.plain.name, []).append(model.name)
        return found

    @property
    def measured(self) -> list[str]:
        """All that tables have a row of: the models, each with its variants behind it, and the ensembles."""
        variants = self.variants
        return [name for model in self.models for name in (model, *variants.get(model, []))]

    def members(self, model: str, fold: str) -> list[RunId]:
        """Return the runs whose probabilities make a model's, or an ensemble's, scores on a fold: all seeds."""
        ids = {run.model.name: run.model for run in self.tables}
        return [RunId(ids[m], fold, seed) for m in self.ensembles.get(model, [model]) for seed in self.params.seeds]

    def averages(self, model: str, fold: str) -> dict[str, list[RunId]]:
        """Return the runs whose probabilities are averaged, by seed: each alone, and all by ALL_SEEDS."""
        members = self.members(model, fold)
        alone = {} if model in self.ensembles else {str(run.seed): [run] for run in members}
        return {**alone, ALL_SEEDS: members}

    def scored(self, model: str, fold: str, seed: str = ALL_SEEDS) -> ScoredClips:
        """Return a model's or an ensemble's test clips of a fold, with the probabilities of its runs averaged."""
        tables = [self.tables[run] for run in self.averages(model, fold)[seed]]
        clips = average_predictions(tables, "test")
        if self.thresholds is None:
            return clips
        return replace(clips, thresholds=self.thresholds.of(model, fold, seed, predicting_weights(tables)))


def predicting_weights(tables: Sequence[PredictionTable]) -> list[str]:
    """Return the digests of the weights behind predictions, sorted: the order of an average does not matter."""
    return sorted(table.metadata["weights"] for table in tables)


def open_decided_predictions(params: ExperimentParams, layout: Layout) -> ExperimentPredictions:
    """Open the predictions of every run, and the thresholds of their decisions where clips may have several labels.

    Raises ArtifactError as `open_experiment_predictions` does, and where thresholds are missing or of other classes.
    """
    predictions = open_experiment_predictions(params, layout)
    first = next(iter(predictions.tables.values()))
    if first.metadata["label_kind"] == "one":
        return predictions
    thresholds = open_thresholds(layout.thresholds)
    thresholds.require_classes(first.metadata["classes"], first.path)
    return replace(predictions, thresholds=thresholds)


def open_experiment_predictions(params: ExperimentParams, layout: Layout) -> ExperimentPredictions:
    """Open the predictions of every run of the experiment.

    Raises ArtifactError that names the file when one is missing, was made for another model, fold or seed, is over other
    classes than the first, or has other variants than the first run of its model.
    """
    runs = [RunId(model, fold, seed) for model in params.model_ids for fold in params.folds for seed in params.seeds]
    tables = {run: _open(layout, run) for run in runs}
    first = tables[runs[0]]
    for table in tables.values():
        for key, expected, found in (
            ("classes", first.metadata["classes"], table.metadata["classes"]),
            ("label_kind", first.metadata["label_kind"], table.metadata["label_kind"]),
        ):
            if found != expected:
                raise PREDICTIONS.error(
                    table.path, f"metadata {key}", expected=f"{expected}, as {first.path}", found=found
                )
    return ExperimentPredictions(params, _with_variants(tables), None)


def _with_variants(tables: Mapping[RunId, PredictionTable]) -> dict[RunId, PredictionTable]:
    """Return the predictions of runs and of their variants. Raises ArtifactError where runs of a model differ in these."""
    found: dict[RunId, PredictionTable] = {}
    firsts: dict[ModelId, tuple[Path, list[str]]] = {}
    for run, table in tables.items():
        variants = variant_tables(table)
        first, expected = firsts.setdefault(run.model, (table.path, list(variants)))
        if list(variants) != expected:
            raise PREDICTIONS.error(
                table.path, "metadata variants", expected=f"{expected}, as {first}", found=list(variants)
            )
        found[run] = table
        found |= {replace(run, model=replace(run.model, variant=name)): own for name, own in variants.items()}
    return found


def _open(layout: Layout, run: RunId) -> PredictionTable:
    table = open_predictions(layout.prediction(run))
    metadata = table.metadata
    for key, expected, found in (
        ("model", run.model.name, metadata["model"]),
        ("fold", run.fold, metadata["fold"]),
        ("seed", run.seed, metadata["seed"]),
    ):
        if found != expected:
            raise PREDICTIONS.error(table.path, f"metadata {key}", expected=expected, found=found)
    return table
