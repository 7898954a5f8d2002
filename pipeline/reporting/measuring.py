"""Open all predictions of an experiment, and measure its models and ensembles.

Conventions: predictions, models and logs lie below <model>/<fold>/<seed>. An ensemble averages the probabilities of all
its models' predictions for a fold, of every seed, so that one model alone makes an ensemble of its seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.artifacts.model import predicting_digest, read_card
from pipeline.artifacts.predictions import PREDICTIONS, open_predictions
from pipeline.artifacts.tables import Table
from pipeline.evaluation.ensemble import ScoredClips, average_predictions, score_clips
from pipeline.evaluation.metrics import Scores, evaluate_clips
from pipeline.experiment_params import ExperimentParams
from pipeline.reporting.summary import ALL_SEEDS, Run

RunKey = tuple[str, str, int]  # model, fold, seed


@dataclass(frozen=True, eq=False)
class Experiment:
    """All predictions of an experiment, opened, and what follows from them."""

    params: ExperimentParams
    headline: tuple[str, ...]
    tables: dict[RunKey, Table]
    cards: dict[RunKey, dict[str, Any]]  # facts of the trained models
    runs: list[Run]
    scores: dict[tuple[str, str], list[Scores]]  # (model or ensemble, fold) -> of each run

    @property
    def ensembles(self) -> dict[str, list[str]]:
        """The ensembles with their models."""
        return {ensemble.name: ensemble.models for ensemble in self.params.ensembles}

    @property
    def models(self) -> list[str]:
        """The models, and the ensembles behind them."""
        return [*self.params.models, *self.ensembles]

    def members(self, model: str, fold: str) -> list[RunKey]:
        """Return the runs whose probabilities make a model's, or an ensemble's, scores on a fold: all seeds."""
        return [(m, fold, seed) for m in self.ensembles.get(model, [model]) for seed in self.params.seeds]

    def scored(self, model: str, fold: str) -> ScoredClips:
        """Return a model's or an ensemble's test clips of a fold, with the probabilities of all its runs averaged."""
        return average_predictions([self.tables[run] for run in self.members(model, fold)], "test")


def open_experiment(
    params: ExperimentParams, headline: Sequence[str], predictions_path: Path, models_path: Path
) -> Experiment:
    """Open every prediction of the experiment and measure it.

    Raises ArtifactError that names the file when one is missing, was made for another model, fold or seed, or by other
    weights than those in the model's folder, or when members of an ensemble differ in clips, classes or targets.
    """
    grid = [(model, fold, seed) for model in params.models for fold in params.folds for seed in params.seeds]
    tables = {run: _open(predictions_path, *run) for run in grid}
    cards = {run: _open_card(models_path, tables[run], *run) for run in grid}
    _check_alike(tables)
    experiment = Experiment(params, tuple(headline), tables, cards, runs=[], scores={})
    for model in params.models:
        for fold in params.folds:
            for run in experiment.members(model, fold):
                _add(experiment, model, fold, str(run[2]), [run], evaluate_clips(score_clips(tables[run], "test")))
    for name in experiment.ensembles:
        for fold in params.folds:
            scores = evaluate_clips(experiment.scored(name, fold))
            _add(experiment, name, fold, ALL_SEEDS, experiment.members(name, fold), scores)
    return experiment


def _add(experiment: Experiment, name: str, fold: str, seed: str, members: Sequence[RunKey], scores: Scores) -> None:
    """Add a run of a model or an ensemble; its costs are its members' together."""
    cards = [experiment.cards[member] for member in members]
    reads = dict.fromkeys("tokens" if model in experiment.params.reads else "frames" for model, _, _ in members)
    experiment.scores.setdefault((name, fold), []).append(scores)
    experiment.runs.append(
        Run(
            model=name,
            reads=" + ".join(reads),
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
            num_parameters=sum(card["num_parameters"] for card in cards),
            clips_seen=sum(card["clips_seen"] for card in cards),
            seconds=sum(card["seconds"] for card in cards),
        )
    )


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
    if predicting_digest(card) != predictions.facts["weights"]:
        expected = f"{predicting_digest(card)}, as {path}"
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
