"""Stage `supervision`: collect the labels of a fold's training clips for a vocabulary that is fitted on labels.

development set + its targets -> data/supervision/<name>/<fold>/targets.parquet

The stage runs for the vocabularies of `experiment.supervised_vocabularies`, by default for none: of the vocabularies, these
alone depend on labels.
"""

import logging
from typing import Annotated

import typer

from pipeline.artifacts.development import (
    DEVELOPMENT,
    TARGETS,
    open_development,
    open_targets,
    write_training_targets,
)
from pipeline.artifacts.layout import Layout
from pipeline.artifacts.settings import require_current
from pipeline.execution.stage import StageReport, stage_main
from pipeline.params import read_params

log = logging.getLogger(__name__)


def run(layout: Layout, name: str, fold: str) -> StageReport:
    report = StageReport("supervision", f"{name}-{fold}")
    development = open_development(layout.development(fold), fold=fold)
    path = layout.training_targets(name, fold)
    written = write_training_targets(path, development, open_targets(layout.targets(fold), development))
    report.clips, report.bytes_written = len(written), path.stat().st_size
    log.info("%s, fold %s: labels of %d training clips -> %s", name, fold, report.clips, path)
    return report


def main(
    name: Annotated[str, typer.Argument(help="entry of `vocabularies` with features.lda")],
    fold: Annotated[str, typer.Option(help="fold whose training clips count")],
) -> None:
    layout = Layout()
    require_current(read_params(), (DEVELOPMENT, layout.development(fold)), (TARGETS, layout.targets(fold)))
    run(layout, name, fold).write()


if __name__ == "__main__":
    stage_main(main)
