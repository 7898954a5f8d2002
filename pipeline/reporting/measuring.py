"""Open all predictions of an experiment, and measure its models and ensembles.

Everything is read from predictions, which hold what there is to say of their models: no model is opened.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from pipeline.artifacts.layout import ALL_SEEDS, Layout, RunId
from pipeline.artifacts.predictions import PredictionsMetadata
from pipeline.evaluation.ensemble import ScoredClips
from pipeline.evaluation.experiment_predictions import ExperimentPredictions, open_decided_predictions
from pipeline.evaluation.metrics import Scores, evaluate_clips, evaluate_intervals
from pipeline.grid import ExperimentParams
from pipeline.reporting.summary import Run


@dataclass(frozen=True, eq=False)
class Experiment(ExperimentPredictions):
    """All predictions of an experiment, and what follows from them."""

    headline: tuple[str, ...]
    runs: list[Run]
    scores: dict[tuple[str, str], list[Scores]]  # (model or ensemble, fold) -> of each run


def open_experiment(params: ExperimentParams, headline: Sequence[str], layout: Layout) -> Experiment:
    """Open every prediction of the experiment and measure it.

    Raises ArtifactError that names the file when one is missing or was made for another model, fold or seed, or when members
    of an ensemble differ in clips, classes or targets.
    """
    predictions = open_decided_predictions(params, layout)
    experiment = Experiment(params, predictions.tables, predictions.thresholds, tuple(headline), runs=[], scores={})
    for model, fold in product(experiment.measured, params.folds):
        for seed, runs in experiment.averages(model, fold).items():
            if seed != ALL_SEEDS or model in experiment.ensembles:
                _add(experiment, model, seed, runs, experiment.scored(model, fold, seed))
    return experiment


def measure(name: str, seed: str, members: Sequence[PredictionsMetadata], clips: ScoredClips, scores: Scores) -> Run:
    """Return the run of a model or an ensemble on one fold; its costs are its members' together."""
    return Run(
        model=name,
        label_kind=clips.label_kind,
        reads=" + ".join(dict.fromkeys(own["reads"] for own in members)),
        fold=clips.fold,
        seed=seed,
        num_clips=scores.num_clips,
        num_present_classes=scores.num_present_classes,
        values=scores.values,
        intervals=evaluate_intervals(clips),
        num_parameters=sum(own["num_parameters"] for own in members),
        clips_seen=sum(own["clips_seen"] for own in members),
        weights="" if seed == ALL_SEEDS else members[0]["weights"],
    )


def _add(experiment: Experiment, name: str, seed: str, members: Sequence[RunId], clips: ScoredClips) -> None:
    """Add a run of a model or an ensemble."""
    metadata, scores = [experiment.tables[member].metadata for member in members], evaluate_clips(clips)
    experiment.scores.setdefault((name, clips.fold), []).append(scores)
    experiment.runs.append(measure(name, seed, metadata, clips, scores))
