"""Thresholds of every model, variant and ensemble of an experiment, on every fold and for every seed and their average.

An average has thresholds of its own, fitted on averaged probabilities: these are less extreme than those of its members.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from pipeline.artifacts.layout import Layout, RunId
from pipeline.artifacts.thresholds import Source
from pipeline.corpora.splitting import inner_fold_names
from pipeline.errors import ParamsError
from pipeline.evaluation.ensemble import ScoredClips, average_predictions
from pipeline.evaluation.experiment_predictions import ExperimentPredictions, predicting_weights
from pipeline.evaluation.inner_folds import known_inner_folds, score_training_clips
from pipeline.evaluation.metric_functions import DECISION_THRESHOLD, Floats
from pipeline.evaluation.thresholds import FittedThresholds, ThresholdParams, fit_thresholds, require_several_labels


@dataclass(frozen=True, eq=False)
class ThresholdRow:
    """Thresholds of one average of predictions; a row of `pipeline/artifacts/thresholds.py`."""

    model: str
    fold: str
    seed: str
    weights: list[str]
    source: Source
    num_clips: int
    thresholds: Floats  # (class,)


def experiment_thresholds(
    params: ThresholdParams, predictions: ExperimentPredictions, layout: Layout
) -> Iterator[ThresholdRow]:
    """Yield the thresholds of all that the report measures.

    Raises ParamsError where thresholds are to be fitted with one label a clip, or for a fold without clips to fit them on.
    """
    require_several_labels(params, next(iter(predictions.tables.values())).metadata["label_kind"])
    for model, fold in product(predictions.measured, predictions.params.folds):
        for seed, runs in predictions.averages(model, fold).items():
            source, num_clips, thresholds = _thresholds(params, predictions, runs, layout)
            weights = predicting_weights([predictions.tables[run] for run in runs])
            yield ThresholdRow(model, fold, seed, weights, source, num_clips, thresholds)


def _thresholds(
    params: ThresholdParams, predictions: ExperimentPredictions, runs: list[RunId], layout: Layout
) -> tuple[Source, int, Floats]:
    """Return the source of thresholds, how many clips they are fitted on, and the thresholds (class,) of an average."""
    fold, num_classes = runs[0].fold, len(predictions.tables[runs[0]].metadata["classes"])
    if params.kind == "fixed":
        return "params", 0, np.full(num_classes, params.value)
    if "validation" in predictions.tables[runs[0]].list("role"):
        clips = average_predictions([predictions.tables[run] for run in runs], "validation")
        return "validation", len(clips.clip_ids), _fit(params, clips)
    folds = predictions.params.folds
    if inner_folds := known_inner_folds(fold, folds):
        tables = {
            inner: [predictions.tables[RunId(run.model, inner, run.seed)] for run in runs] for inner in inner_folds
        }
        clips = score_training_clips(fold, tables, layout)
        return "inner folds", len(clips.clip_ids), _fit(params, clips)
    if any(fold in known_inner_folds(outer, folds) for outer in folds):
        return "params", 0, np.full(num_classes, DECISION_THRESHOLD)  # it scores clips, and decides nothing
    inner_folds = inner_fold_names(fold, 2)
    raise ParamsError(
        f"thresholds.kind: expected fixed, since fold {fold} has neither validation clips nor inner folds to fit them on, "
        f"found {params.kind}; set split.validation_fraction above 0, or put all inner folds of fold {fold} "
        f"({', '.join(inner_folds)}, ...; split.num_folds of them) into experiment.folds, or set thresholds.kind=fixed and "
        "thresholds.value=0.5"
    )


def _fit(params: FittedThresholds, clips: ScoredClips) -> Floats:
    return fit_thresholds(params, clips.scores, clips.targets)
