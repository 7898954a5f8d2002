"""Stage `development`: collect the development set of one fold, which all that it learns follows from.

    clips + training labels + split + the spectrogram's index -> data/development/{clips, targets}/<fold>.parquet

A development set holds training and validation clips alone: where test clips are added, DVC finds it as it was, and reruns
no stage that learns.
"""

import logging
from pathlib import Path
from typing import Annotated

import typer

from pipeline.artifacts.clips import CLIPS, open_clips
from pipeline.artifacts.development import open_targets, write_development, write_targets
from pipeline.artifacts.layout import Layout
from pipeline.artifacts.settings import require_current
from pipeline.artifacts.spectrogram import INDEX
from pipeline.artifacts.splits import SPLIT, open_split
from pipeline.artifacts.training_labels import open_training_labels
from pipeline.corpora.relabelling import require_fold, require_trained
from pipeline.corpora.splitting import check_frames
from pipeline.execution.stage import StageReport, stage_main
from pipeline.params import read_params

log = logging.getLogger(__name__)


def run(
    clips_path: Path,
    split_path: Path,
    index_path: Path,
    development_path: Path,
    targets_path: Path,
    training_labels_path: Path | None = None,
) -> None:
    split = open_split(split_path)
    fold = split.metadata["fold"]
    report = StageReport("development", fold)
    clips, index = open_clips(clips_path), INDEX.open(index_path)
    development = write_development(development_path, split, index)
    check_frames(clips, split, index)
    labels = open_training_labels(training_labels_path) if training_labels_path else None
    if labels is not None:
        require_fold(labels, fold)
    write_targets(targets_path, development, clips, labels)
    if labels is not None:
        require_trained(open_targets(targets_path, development), development, clips)
    log.info("fold %s: %d training and validation clips -> %s", fold, len(development), development_path)
    report.clips = len(development)
    report.bytes_written = development_path.stat().st_size + targets_path.stat().st_size
    report.write()


def main(fold: Annotated[str, typer.Argument(help="fold whose training and validation clips are collected")]) -> None:
    layout = Layout()
    clips, split, index = layout.clips, layout.split(fold), layout.spectrogram_index
    require_current(read_params(), (CLIPS, clips), (SPLIT, split), (INDEX, index))
    run(clips, split, index, layout.development(fold), layout.targets(fold), layout.training_labels)


if __name__ == "__main__":
    stage_main(main)
