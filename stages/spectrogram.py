"""Decode every clip of the manifest and compute its log-mel frames.

    clips.parquet + the audio below corpus.root -> spectrogram/{frames.zarr, index.parquet}

The manifest names every file by its content, so DVC tracks the manifest and not the audio. Frames do not depend on the
split: one spectrogram serves all folds. A clip that cannot be used stands in the index with the reason.
"""

import logging
import shutil
from pathlib import Path

from pipeline.artifacts.clips import open_clips
from pipeline.artifacts.files import replacing
from pipeline.artifacts.spectrogram import FRAMES
from pipeline.corpora.base import AudioParams
from pipeline.execution.executors import ExecutionParams, run_shards
from pipeline.execution.stage import StageReport, stage_main
from pipeline.params import load_params
from pipeline.spectrogram.building import (
    SpectrogramParams,
    compute_shard,
    count_failed,
    plan_shards,
    require_few_failed,
    write_index,
)
from pipeline.spectrogram.registry import build_front_end

log = logging.getLogger(__name__)

# Starting a worker costs as much processor time as this many clips of a few seconds.
_CLIPS_WORTH_A_WORKER = 400


def run(
    params: SpectrogramParams, corpus: AudioParams, execution: ExecutionParams, clips_path: Path, path: Path
) -> None:
    report = StageReport("spectrogram")
    clips = open_clips(clips_path)
    empty_bands = build_front_end(params.front_end).empty_bands
    if empty_bands:
        log.warning("no FFT bin lies in mel bands %s: they stay at the floor; fewer n_mels or more n_fft", empty_bands)
    with replacing(path) as partial:
        frames_path = partial / "frames.zarr"
        FRAMES.create(frames_path, params.facts)
        specs = plan_shards(clips, params, root=corpus.root, max_duration=corpus.max_duration, frames_path=frames_path)
        done = run_shards(
            compute_shard,
            specs,
            execution=execution,
            report=report,
            label="spectrogram",
            total_clips=len(clips),
            num_clips=lambda spec: len(spec.clips),
            worthwhile=len(clips) // _CLIPS_WORTH_A_WORKER,
        )
        by_name = {shard.name: shard for shard in done}
        shards = [by_name[spec.name] for spec in specs]
        report.clips, report.shards, report.failed = len(clips), len(shards), count_failed(shards)
        report.decoded = len(clips) - sum(report.failed.values())
        require_few_failed(shards, corpus.max_bad_fraction)
        for stray in frames_path.glob(".*.partial"):  # of killed workers
            shutil.rmtree(stray)
        write_index(partial / "index.parquet", shards, params.facts)
        report.bytes_written = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file())
    num_clipped = sum(shard.num_clipped for shard in shards)
    if num_clipped:
        log.warning("%d values lay outside spectrogram.uint8_range and were clipped to it", num_clipped)
    failed = ", ".join(f"{reason} {count}" for reason, count in report.failed.items()) or "none"
    log.info("%d clips, failed: %s; %d shards -> %s", report.clips, failed, report.shards, path)
    report.write()


def main(clips: Path, spectrogram: Path) -> None:
    corpus, execution = load_params(AudioParams, "corpus"), load_params(ExecutionParams, "execution")
    run(load_params(SpectrogramParams, "spectrogram"), corpus, execution, clips, spectrogram)


if __name__ == "__main__":
    stage_main(main)
