"""Stage `corpus`: write the manifest, with every clip of the corpus and a content digest of every file.

    corpus (a folder of audio and its table), labels.use -> clips.parquet, missing.parquet, training_labels.parquet

DVC runs this stage every time: it compares size and time of each file with the last run, reads changed files, and leaves the
manifest as it is when nothing changed, so that later stages are skipped. What would stop the stage `split`, which waits for
all frames, stops the run here.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

from pipeline.artifacts.clips import open_clips
from pipeline.artifacts.layout import Layout
from pipeline.corpora.manifest import refresh_manifest
from pipeline.corpora.registry import CorpusParams
from pipeline.corpora.relabelling import UsedLabels, refresh_training_labels
from pipeline.corpora.splitting import SplitParams, assign_roles
from pipeline.execution.stage import StageReport, stage_main
from pipeline.grid import ExperimentParams
from pipeline.params import load_params

log = logging.getLogger(__name__)


def run(
    params: CorpusParams,
    labels: UsedLabels,
    clips_path: Path,
    missing_path: Path | None = None,
    training_labels_path: Path | None = None,
) -> None:
    report = StageReport("corpus")
    refresh = refresh_manifest(params, clips_path, missing_path=missing_path)
    log.info(
        "%d clips of `%s`: read %d files, %d missing; %s %s",
        refresh.num_clips,
        params.kind,
        refresh.num_hashed,
        refresh.num_missing,
        "wrote" if refresh.written else "no change in",
        clips_path,
    )
    if training_labels_path is not None:
        refresh_training_labels(labels.use, open_clips(clips_path), training_labels_path)
    report.clips = refresh.num_clips
    counted = {"missing": refresh.num_missing, **refresh.left_out}
    report.failed = {reason: count for reason, count in counted.items() if count}
    report.bytes_written = clips_path.stat().st_size if refresh.written else 0
    report.write()


def check_folds(folds: Sequence[str], split: SplitParams, layout: Layout) -> None:
    """Raise CorpusError for a fold that the stage `split` could not make, before frames are computed for it."""
    if new := [fold for fold in folds if not layout.split(fold).exists()]:
        clips = open_clips(layout.clips)
        for fold in new:
            assign_roles(clips, fold, split)


def main() -> None:
    layout = Layout()
    params, labels = load_params(CorpusParams, "corpus"), load_params(UsedLabels, "labels")
    run(params, labels, layout.clips, layout.missing, layout.training_labels)
    check_folds(load_params(ExperimentParams, "experiment").folds, load_params(SplitParams, "split"), layout)


if __name__ == "__main__":
    stage_main(main)
