"""Join all predictions into the numbers, tables, plots and the page that people look at.

    predictions, models, results/train, clips, splits, spectrogram, vocabulary, tokens
        -> results/metrics.json, results/summary.csv, results/vocabularies.csv, results/language.csv, results/plots/,
           report/index.html, report/atlas.html

Every number is computed here, from stored predictions.
"""

import logging
from pathlib import Path

from pipeline.artifacts.layout import Layout
from pipeline.corpora.base import AudioParams
from pipeline.execution.stage import StageReport, stage_main
from pipeline.experiment_params import ExperimentParams
from pipeline.params import load_params
from pipeline.reporting.assembly import DataPaths, gather_page
from pipeline.reporting.atlas_index import write_atlas_index
from pipeline.reporting.language import write_language
from pipeline.reporting.measuring import open_experiment
from pipeline.reporting.page import write_page
from pipeline.reporting.plots import write_plots
from pipeline.reporting.summary import (
    ReportParams,
    headline_metrics,
    summarise,
    write_metrics,
    write_summary,
)
from pipeline.reporting.words import write_word_statistics

log = logging.getLogger(__name__)


def run(
    params: ReportParams,
    experiment_params: ExperimentParams,
    predictions_path: Path,
    models_path: Path,
    data: DataPaths,
    results_path: Path,
    page_path: Path,
) -> None:
    params.check_against(experiment_params)
    report = StageReport("report")
    experiment = open_experiment(experiment_params, params.headline, predictions_path, models_path)
    write_metrics(results_path / "metrics.json", headline_metrics(summarise(experiment.runs), params.headline))
    write_summary(results_path / "summary.csv", experiment.runs)
    write_plots(results_path / "plots", data.logs, experiment)
    content = gather_page(params, experiment, data)
    write_word_statistics(results_path / "vocabularies.csv", content.words)
    write_language(results_path / "language.csv", {name: words.language for name, words in content.words.items()})
    write_page(page_path, content)
    write_atlas_index(page_path.with_name("atlas.html"), content)
    report.clips = sum(summary.num_clips for summary in summarise(experiment.runs)[:1])
    report.bytes_written = page_path.stat().st_size
    report.write(results_path / "stages" / "report.json")
    log.info("%d runs -> %s, %s", len(experiment.runs), results_path / "metrics.json", page_path)


def main() -> None:
    layout = Layout()
    # Where the audio lies is no dependency: the page's sound is the only thing that is read from there.
    audio = load_params(AudioParams, "corpus").root
    paths = DataPaths.below(layout.data, models=layout.models, logs=layout.results / "train", audio=audio)
    experiment = load_params(ExperimentParams, "experiment")
    run(
        load_params(ReportParams, "report"),
        experiment,
        layout.predictions,
        layout.models,
        paths,
        layout.results,
        layout.page,
    )


if __name__ == "__main__":
    stage_main(main)
