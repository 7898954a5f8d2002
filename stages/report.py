"""Stage `report`: compute metrics from all predictions, and write tables, plots and the report page.

    predictions, results/{thresholds,train,attention,ngram_perplexity}, clips, duplicates, training_labels, splits,
    spectrogram, vocabulary, tokens
        -> results/{metrics.json,summary.csv,vocabularies.csv,bit_rates.csv,plots/}, report/{index.html,data.html,atlas.html}

Every metric is computed from stored predictions; no model is opened, and no training code is run.
"""

import logging
from itertools import product
from pathlib import Path

from pipeline.artifacts.clips import CLIPS
from pipeline.artifacts.duplicates import DUPLICATES
from pipeline.artifacts.layout import Layout
from pipeline.artifacts.predictions import PREDICTIONS
from pipeline.artifacts.settings import require_current
from pipeline.artifacts.spectrogram import INDEX
from pipeline.artifacts.splits import SPLIT
from pipeline.artifacts.thresholds import THRESHOLDS
from pipeline.artifacts.tokens import TOKENS
from pipeline.corpora.base import AudioParams
from pipeline.execution.stage import StageReport, stage_main
from pipeline.grid import ExperimentParams
from pipeline.params import load_params, read_params
from pipeline.reporting.assembly import gather_page
from pipeline.reporting.atlas.index import write_atlas_index
from pipeline.reporting.bit_rates import write_bit_rates
from pipeline.reporting.data_page import write_data_page
from pipeline.reporting.measuring import open_experiment
from pipeline.reporting.page import write_page
from pipeline.reporting.plots import write_plots
from pipeline.reporting.report_settings import ReportParams
from pipeline.reporting.summary import headline_metrics, summarise, write_metrics, write_summary
from pipeline.reporting.token_use import write_token_statistics

log = logging.getLogger(__name__)


def run(params: ReportParams, grid: ExperimentParams, layout: Layout, *, audio: Path) -> None:
    """Write all outputs; `audio` is the corpus root and may be missing."""
    params.check_against(grid)
    report = StageReport("report")
    experiment = open_experiment(grid, params.headline, layout)
    summaries = summarise(experiment.runs)
    write_metrics(layout.metrics, headline_metrics(summaries, params.headline, experiment.variants))
    write_summary(layout.summary, experiment.runs)
    write_plots(layout, experiment)
    content = gather_page(params, experiment, layout, audio=audio)
    write_token_statistics(layout.vocabulary_statistics, content.tokens)
    write_bit_rates(layout.bit_rates, content.bit_rates)
    write_page(layout.page, content)
    write_data_page(layout.data_page, content)
    write_atlas_index(layout.atlas_index, content)
    report.clips, report.bytes_written = summaries[0].num_clips, layout.page.stat().st_size
    report.write(layout.stage_reports / "report.json")
    log.info("%d runs -> %s, %s", len(experiment.runs), layout.metrics, layout.page)


def main() -> None:
    # The corpus root is not a dependency: only the sounds of the page are read from it.
    audio = load_params(AudioParams, "corpus").root
    layout, experiment = Layout(), load_params(ExperimentParams, "experiment")
    read = product(experiment.vocabularies, experiment.folds)
    require_current(
        read_params(),
        (CLIPS, layout.clips),
        (INDEX, layout.spectrogram_index),
        (DUPLICATES, layout.duplicates),
        *((SPLIT, layout.split(fold)) for fold in experiment.folds),
        *((TOKENS, layout.tokens(name, fold)) for name, fold in read),
        *((PREDICTIONS, layout.prediction(this)) for this in experiment.runs()),
        (THRESHOLDS, layout.thresholds),
    )
    run(load_params(ReportParams, "report"), experiment, layout, audio=audio)


if __name__ == "__main__":
    stage_main(main)
