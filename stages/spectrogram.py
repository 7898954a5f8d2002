"""Stage `spectrogram`: decode every clip of the manifest and compute its log-mel frames.

    clips.parquet + the audio below corpus.root -> spectrogram/{frames.zarr, index.parquet}

The manifest has a digest of every file's content, so DVC tracks the manifest and not the audio. Frames do not depend on the
split: one spectrogram serves all folds. A clip that cannot be used is in the index with the reason. Shards in the memo store
are linked, and of the others only clips that no entry holds are decoded.
"""

import logging
from pathlib import Path

import pyarrow.compute as pc

from pipeline.artifacts.clips import CLIPS, open_clips
from pipeline.artifacts.files import clear_partials, replacing
from pipeline.artifacts.layout import Layout
from pipeline.artifacts.settings import require_current
from pipeline.corpora.base import AudioParams
from pipeline.execution.executors import ExecutionParams, run_shards
from pipeline.execution.stage import StageReport, stage_main
from pipeline.params import load_params, read_params
from pipeline.spectrogram.building import (
    assemble,
    compute_shard,
    count_failed,
    find_known,
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
    reuse = find_known(memo, plans, clips)
    total = sum(plan.stop - plan.start for plan in reuse.todo)
    report.clips, report.shards, report.reused = len(clips), len(plans), len(clips) - total
    new: set[str] = set()
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
        new.add(done.name)
        report.decoded += done.decoded
        report.reused += done.reused
    known = set(reuse.entries) - new
    memo.mark_used(entry.path.name for entry in reuse.entries.values())
    with replacing(path) as partial:
        settings = {
            "spectrogram": params.model_dump(mode="json", exclude={"clips_per_shard"}),
            "corpus.max_duration": corpus.max_duration,
        }
        rows = assemble(partial, plans, reuse.entries, memo, params.metadata, settings)
        report.failed = count_failed(rows)
        require_few_failed(rows, corpus.max_bad_fraction)
        report.bytes_written = sum(
            file.stat().st_size for file in partial.rglob("*") if file.is_file() and not known & set(file.parts)
        )
    num_clipped = pc.sum(rows["num_clipped"]).as_py()
    if num_clipped:
        log.warning("%d values lay outside spectrogram.uint8_range and were clipped to it", num_clipped)
    failed = ", ".join(f"{reason} {count}" for reason, count in report.failed.items()) or "none"
    log.info(
        "%d clips: decoded %d, reused %d, failed: %s; %d shards -> %s",
        report.clips, report.decoded, report.reused, failed, report.shards, path,
    )  # fmt: skip
    report.write()


def main() -> None:
    layout = Layout()
    require_current(read_params(), (CLIPS, layout.clips))
    corpus, execution = load_params(AudioParams, "corpus"), load_params(ExecutionParams, "execution")
    run(load_params(SpectrogramParams, "spectrogram"), corpus, execution, layout.clips, layout.spectrogram)


if __name__ == "__main__":
    stage_main(main)
