"""Stage `spectrogram`: decode every clip of the manifest and compute its log-mel frames.

    clips.parquet + the audio below corpus.root -> spectrogram/{frames.zarr, index.parquet}, copies/<copy>/{the same}

The manifest has a digest of every file's content, so DVC tracks the manifest and not the audio. Frames do not depend on the
split: one spectrogram serves all folds. A clip that cannot be used is in the index with the reason. Shards in the memo store
are linked, and of the others only clips that no entry holds are decoded. Each entry of `spectrogram.copies` is a second
artifact, of copies of the clips with another speed or pitch, which networks may train on.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.artifacts.clips import CLIPS, ClipTable, open_clips
from pipeline.artifacts.files import clear_partials, replacing
from pipeline.artifacts.layout import Layout
from pipeline.artifacts.settings import require_current
from pipeline.corpora.base import AudioParams
from pipeline.execution.executors import ExecutionParams, run_shards
from pipeline.execution.memo import Memo, retry_lost
from pipeline.execution.stage import StageReport, stage_main
from pipeline.params import load_params, read_params
from pipeline.spectrogram.building import (
    ShardPlan,
    assemble,
    compute_shard,
    count_failed,
    find_known,
    forget_moved,
    open_memo,
    plan_shards,
    require_few_failed,
    shard_specs,
)
from pipeline.spectrogram.copies import Copy
from pipeline.spectrogram.registry import build_front_end
from pipeline.spectrogram.settings import SpectrogramParams

log = logging.getLogger(__name__)

# Starting a worker costs as much CPU time as this many clips of a few seconds, or of copies with another pitch.
_CLIPS_WORTH_A_WORKER, _SHIFTED_WORTH_A_WORKER = 400, 150


class _Work(NamedTuple):
    """Settings and clips of one artifact."""

    params: SpectrogramParams
    corpus: AudioParams
    execution: ExecutionParams
    clips: ClipTable
    copy: Copy | None  # what it is of; None = the clips themselves


def run(
    params: SpectrogramParams, corpus: AudioParams, execution: ExecutionParams, clips_path: Path, path: Path
) -> None:
    if empty_bands := build_front_end(params.front_end).empty_bands:
        log.warning("no FFT bin lies in mel bands %s: they stay at the floor; lower n_mels or raise n_fft", empty_bands)
    clear_partials(path)
    report, rows = _write(_Work(params, corpus, execution, open_clips(clips_path), None), path)
    if num_clipped := pc.sum(rows["num_clipped"]).as_py():
        log.warning("%d values lay outside spectrogram.uint8_range and were clipped to it", num_clipped)
    if "read_error" in report.failed:
        log.warning(
            "%d clips could not be read; once they can, `dvc repro --force --single-item spectrogram` decodes them",
            report.failed["read_error"],
        )


def run_copies(
    params: SpectrogramParams, corpus: AudioParams, execution: ExecutionParams, clips_path: Path, path: Path
) -> None:
    """Write the folder of the copies' artifacts, which may be none."""
    clear_partials(path)
    clips = open_clips(clips_path)
    with replacing(path) as partial:
        partial.mkdir()
        for copy in params.copies:
            _write(_Work(params, corpus, execution, clips, copy), partial / copy.name)


def _write(work: _Work, path: Path) -> tuple[StageReport, pa.Table]:
    """Write one artifact, and return its report and rows."""
    params, copy = work.params, work.copy
    memo = open_memo(work.execution.memo, params, work.corpus.max_duration, copy)
    plans = plan_shards(work.clips, params.clips_per_shard)
    report = StageReport("spectrogram", copy.name if copy else "", clips=len(work.clips), shards=len(plans))
    rows = retry_lost(lambda: _build(work, plans, memo, path, report))
    failed = ", ".join(f"{reason} {count}" for reason, count in report.failed.items()) or "none"
    log.info(
        "%d clips: decoded %d, reused %d, failed: %s; %d shards -> %s",
        report.clips, report.decoded, report.reused, failed, report.shards, f"copy {copy.name}" if copy else path,
    )  # fmt: skip
    report.write()
    return report, rows


def _build(work: _Work, plans: Sequence[ShardPlan], memo: Memo, path: Path, report: StageReport) -> pa.Table:
    """Compute the shards that the memo lacks, write the artifact, and return its rows."""
    clips, params, corpus, copy = work.clips, work.params, work.corpus, work.copy
    memo.mark_used(plan.name for plan in plans)
    reuse = find_known(memo, plans, clips, thorough=True)
    memo.mark_used(reuse.donors())
    known = set(reuse.entries)
    total = sum(plan.stop - plan.start for plan in reuse.todo)
    report.reused = max(0, len(clips) - total - report.decoded)
    specs = shard_specs(clips, reuse, params, root=corpus.root, max_duration=corpus.max_duration, memo=memo, copy=copy)
    for done in run_shards(
        compute_shard,
        specs,
        execution=work.execution,
        report=report,
        label="spectrogram",
        total_clips=total,
        num_clips=lambda spec: len(spec.clips),
        worthwhile=total // (_SHIFTED_WORTH_A_WORKER if copy and copy.pitch else _CLIPS_WORTH_A_WORKER),
    ):
        reuse.entries[done.name] = memo.require(done.entry)
        report.decoded += done.decoded
        report.reused += done.reused
    with replacing(path) as partial:
        settings = {"spectrogram": params.recorded(copy), "corpus.max_duration": corpus.max_duration}
        rows = assemble(partial, plans, reuse.entries, memo, params.metadata, settings, copy)
        report.failed = count_failed(rows)
        forget_moved(rows, clips, corpus.root)
        if copy is None:  # clips that fail only as a copy, too short at its speed, are read as they are
            require_few_failed(rows, corpus.max_bad_fraction, corpus.root)
        report.bytes_written = sum(
            file.stat().st_size for file in partial.rglob("*") if file.is_file() and not known & set(file.parts)
        )
    return rows


def main() -> None:
    layout = Layout()
    require_current(read_params(), (CLIPS, layout.clips))
    params = load_params(SpectrogramParams, "spectrogram")
    corpus, execution = load_params(AudioParams, "corpus"), load_params(ExecutionParams, "execution")
    run(params, corpus, execution, layout.clips, layout.spectrogram)
    run_copies(params, corpus, execution, layout.clips, layout.copies)


if __name__ == "__main__":
    stage_main(main)
