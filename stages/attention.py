"""Stage `attention`: compute a network's attention or Grad-CAM maps for the test clips that the report shows.

    predictions + thresholds + spectrogram + models/<model> -> results/attention/<model>.parquet

Runs for each model of `report.attention`. The clips are chosen from the predictions of the models in the report's headline.
A clip's map is that of the model of the fold that tests it, with the first seed.
"""

import logging
from typing import Annotated

import typer

from pipeline.artifacts.attention import ATTENTION, AttentionMetadata
from pipeline.artifacts.layout import Layout, ModelId, RunId
from pipeline.artifacts.model import MODEL, TrainedModel, open_model, predicting_digest
from pipeline.artifacts.predictions import PREDICTIONS, PredictionTable
from pipeline.artifacts.settings import require_current
from pipeline.artifacts.spectrogram import INDEX
from pipeline.artifacts.thresholds import THRESHOLDS
from pipeline.evaluation.choosing import choose_shown, score_experiment
from pipeline.evaluation.experiment_predictions import open_decided_predictions
from pipeline.evaluation.explanation import open_explainer
from pipeline.execution.stage import StageReport, stage_main
from pipeline.grid import ExperimentParams
from pipeline.params import load_params, read_params
from pipeline.reporting.report_settings import ReportParams
from pipeline.training.inputs import open_inputs_of

log = logging.getLogger(__name__)


def run(params: ReportParams, experiment: ExperimentParams, layout: Layout, *, entry: str) -> None:
    """Compute the maps of an entry of `models`."""
    report, seed = StageReport("attention", entry), experiment.seeds[0]
    predictions = open_decided_predictions(experiment, layout)
    scores = score_experiment(predictions)
    shown = choose_shown(scores, params.headline, examples=params.examples, mistakes=params.worst).all
    columns: dict[str, list[object]] = {name: [] for name in ATTENTION.columns}
    weights: dict[str, str] = {}
    method = ""  # of no clip
    for fold in experiment.folds:
        clips = [clip for clip in shown if scores.fold_of[clip] == fold]
        if not clips:
            continue
        this = RunId.of(entry, fold, seed)
        model = open_model(layout.model(this))
        weights[fold] = _require_predicting(model, predictions.tables[this])
        explainer = open_explainer(model, open_inputs_of(model, layout.spectrogram))
        method = explainer.method
        columns["clip_id"] += clips
        columns["fold"] += [fold] * len(clips)
        columns["map"] += [explainer.read(clip).over_spectrogram().tolist() for clip in clips]
    metadata: AttentionMetadata = {"model": entry, "seed": seed, "layer": method, "weights": weights}
    ATTENTION.write(layout.attention(entry), columns, metadata)
    log.info("%s: maps of %d clips -> %s", entry, len(shown), layout.attention(entry))
    report.clips = len(shown)
    report.write()


def _require_predicting(model: TrainedModel, predictions: PredictionTable) -> str:
    """Return the digest of a model's weights. Raises ArtifactError unless the predictions are of these weights."""
    digest = predicting_digest(model.metadata)
    if predictions.metadata["weights"] != digest:
        expected, found = f"{digest}, as {model.path}", predictions.metadata["weights"]
        raise PREDICTIONS.error(predictions.path, "metadata weights", expected=expected, found=found)
    return digest


def main(entry: Annotated[str, typer.Argument(help="entry of `models`, one of report.attention")]) -> None:
    layout, experiment = Layout(), load_params(ExperimentParams, "experiment")
    predictions = [(PREDICTIONS, layout.prediction(this)) for this in experiment.runs()]
    models = [(MODEL, layout.model(this)) for this in experiment.runs() if this.model == ModelId(entry)]
    require_current(
        read_params(), (INDEX, layout.spectrogram_index), (THRESHOLDS, layout.thresholds), *predictions, *models
    )
    run(load_params(ReportParams, "report"), experiment, layout, entry=entry)


if __name__ == "__main__":
    stage_main(main)
