"""All predictions of an experiment, opened together: what its stages `attention` and `report` start from."""

from dataclasses import dataclass

from pipeline.artifacts.layout import Layout, RunId
from pipeline.artifacts.predictions import PREDICTIONS, PredictionTable, open_predictions
from pipeline.evaluation.ensemble import ScoredClips, average_predictions
from pipeline.grid import ExperimentParams


@dataclass(frozen=True, eq=False)
class ExperimentPredictions:
    """The predictions of every run.

    An ensemble averages the probabilities of all its models' predictions for a fold, of every seed, so that one model alone
    makes an ensemble of its seeds.
    """

    params: ExperimentParams
    tables: dict[RunId, PredictionTable]

    @property
    def ensembles(self) -> dict[str, list[str]]:
        """The ensembles with their models."""
        return {ensemble.name: ensemble.models for ensemble in self.params.ensembles}

    @property
    def models(self) -> list[str]:
        """The models, and the ensembles behind them."""
        return [*self.params.models, *self.ensembles]

    def members(self, model: str, fold: str) -> list[RunId]:
        """Return the runs whose probabilities make a model's, or an ensemble's, scores on a fold: all seeds."""
        ids = {own.name: own for own in self.params.model_ids}
        return [RunId(ids[m], fold, seed) for m in self.ensembles.get(model, [model]) for seed in self.params.seeds]

    def scored(self, model: str, fold: str) -> ScoredClips:
        """Return a model's or an ensemble's test clips of a fold, with the probabilities of all its runs averaged."""
        return average_predictions([self.tables[run] for run in self.members(model, fold)], "test")


def open_experiment_predictions(params: ExperimentParams, layout: Layout) -> ExperimentPredictions:
    """Open the predictions of every run of the experiment.

    Raises ArtifactError that names the file when one is missing, was made for another model, fold or seed, or is over other
    classes than the first.
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
    return ExperimentPredictions(params, tables)


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
