"""Stage `spectrogram`: decode every clip of the manifest and compute its log-mel frames.

    clips.parquet + the audio below corpus.root -> spectrogram/{frames.zarr, index.parquet}

The manifest has a digest of every file's content, so DVC tracks the manifest and not the audio. Frames do not depend on the
split: one spectrogram serves all folds. A clip that cannot be used is in the index with the reason. Shards in the memo store
are linked, and of the others only clips that no entry holds are decoded.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

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
from pipeline.spectrogram.registry import build_front_end
from pipeline.spectrogram.settings import SpectrogramParams

log = logging.getLogger(__name__)

# Starting a worker costs as much CPU time as this many clips of a few seconds.
_CLIPS_WORTH_A_WORKER = 400


def run(
    params: SpectrogramParams, corpus: AudioParams, execution: ExecutionParams, clips_path: Path, path: Path
) -> None:
    report = StageReport("spectrogram")
    clips = open_clips(clips_path)
    empty_bands = build_front_end(params.front_end).empty_bands
    if empty_bands:
        log.warning("no FFT bin lies in mel bands %s: they stay at the floor; lower n_mels or raise n_fft", empty_bands)
    clear_partials(path)
    memo = open_memo(execution.memo, params, corpus.max_duration)
    plans = plan_shards(clips, params.clips_per_shard)
    report.clips, report.shards = len(clips), len(plans)
    rows = retry_lost(lambda: _build(params, corpus, execution, clips, plans, memo, path, report))
    num_clipped = pc.sum(rows["num_clipped"]).as_py()
    if num_clipped:
        log.warning("%d values lay outside spectrogram.uint8_range and were clipped to it", num_clipped)
    if "read_error" in report.failed:
        log.warning(
            "%d clips could not be read; once they can, `dvc repro --force --single-item spectrogram` decodes them",
            report.failed["read_error"],
        )
    failed = ", ".join(f"{reason} {count}" for reason, count in report.failed.items()) or "none"
    log.info(
        "%d clips: decoded %d, reused %d, failed: %s; %d shards -> %s",
        report.clips, report.decoded, report.reused, failed, report.shards, path,
    )  # fmt: skip
    report.write()


def _build(
    params: SpectrogramParams,
    corpus: AudioParams,
    execution: ExecutionParams,
    clips: ClipTable,
    plans: Sequence[ShardPlan],
    memo: Memo,
    path: Path,
    report: StageReport,
) -> pa.Table:
    """Compute the shards that the memo lacks, write the artifact, and return its rows."""
    memo.mark_used(plan.name for plan in plans)
    reuse = find_known(memo, plans, clips, thorough=True)
    memo.mark_used(reuse.donors())
    known = set(reuse.entries)
    total = sum(plan.stop - plan.start for plan in reuse.todo)
    report.reused = max(0, len(clips) - total - report.decoded)
    specs = shard_specs(clips, reuse, params, root=corpus.root, max_duration=corpus.max_duration, memo=memo)
    for done in run_shards(
        compute_shard,
        specs,
        execution=execution,
        report=report,
        label="spectrogram",
        total_clips=total,
        num_clips=lambda spec: len(spec.clips),
        worthwhile=total // _CLIPS_WORTH_A_WORKER,
    ):
        reuse.entries[done.name] = memo.require(done.entry)
        report.decoded += done.decoded
        report.reused += done.reused
    with replacing(path) as partial:
        settings = {
            "spectrogram": params.model_dump(mode="json", exclude={"clips_per_shard"}),
            "corpus.max_duration": corpus.max_duration,
        }
        rows = assemble(partial, plans, reuse.entries, memo, params.metadata, settings)
        report.failed = count_failed(rows)
        forget_moved(rows, clips, corpus.root)
        require_few_failed(rows, corpus.max_bad_fraction, corpus.root)
        report.bytes_written = sum(
            file.stat().st_size for file in partial.rglob("*") if file.is_file() and not known & set(file.parts)
        )
    return rows


def main() -> None:
    layout = Layout()
    require_current(read_params(), (CLIPS, layout.clips))
    corpus, execution = load_params(AudioParams, "corpus"), load_params(ExecutionParams, "execution")
    run(load_params(SpectrogramParams, "spectrogram"), corpus, execution, layout.clips, layout.spectrogram)


if __name__ == "__main__":
    stage_main(main)
