"""Stage `thresholds`: fit thresholds of decisions on validation or out-of-fold predictions, where clips have several labels.

    predictions + splits -> results/thresholds.parquet

It reads no score of a test clip but those of inner folds, which test clips that their fold trains on. Other settings of
`thresholds` rerun it and what shows decisions: no model is trained, and nothing is predicted.
"""

import logging

from pipeline.artifacts.layout import Layout
from pipeline.artifacts.predictions import PREDICTIONS
from pipeline.artifacts.settings import SETTINGS, require_current
from pipeline.artifacts.splits import SPLIT
from pipeline.artifacts.thresholds import THRESHOLDS, ThresholdsMetadata
from pipeline.evaluation.experiment_predictions import open_experiment_predictions
from pipeline.evaluation.experiment_thresholds import experiment_thresholds
from pipeline.evaluation.thresholds import ThresholdParams
from pipeline.execution.stage import StageReport, stage_main
from pipeline.grid import ExperimentParams
from pipeline.params import load_params, read_params

log = logging.getLogger(__name__)


def run(params: ThresholdParams, experiment: ExperimentParams, layout: Layout) -> None:
    """Write the thresholds of all models and ensembles."""
    report = StageReport("thresholds")
    predictions = open_experiment_predictions(experiment, layout)
    rows = list(experiment_thresholds(params, predictions, layout))
    columns = {name: [getattr(row, name) for row in rows] for name in THRESHOLDS.columns}
    columns["thresholds"] = [row.thresholds.tolist() for row in rows]
    first = next(iter(predictions.tables.values())).metadata
    metadata: ThresholdsMetadata = {
        "classes": first["classes"],
        "label_kind": first["label_kind"],
        SETTINGS: {"thresholds": params.model_dump(mode="json")},
    }
    THRESHOLDS.write(layout.thresholds, columns, metadata)
    log.info("%s thresholds of %d averages of predictions -> %s", params.kind, len(rows), layout.thresholds)
    report.clips, report.bytes_written = max(row.num_clips for row in rows), layout.thresholds.stat().st_size
    report.write()


def main() -> None:
    layout, experiment = Layout(), load_params(ExperimentParams, "experiment")
    splits = [(SPLIT, layout.split(fold)) for fold in experiment.folds]
    predictions = [(PREDICTIONS, layout.prediction(this)) for this in experiment.runs()]
    require_current(read_params(), *splits, *predictions)
    params: ThresholdParams = load_params(ThresholdParams, "thresholds")  # type: ignore[arg-type]  # a union, as type[T] cannot say
    run(params, experiment, layout)


if __name__ == "__main__":
    stage_main(main)
