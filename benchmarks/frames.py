"""Synthetic spectrogram artifacts for benchmarks, written as the stage writes them."""

from pathlib import Path

import numpy as np

from benchmarks.audio import synthesise
from benchmarks.features import FRONT_END
from pipeline.artifacts.spectrogram import FRAMES, INDEX
from pipeline.spectrogram.kaldi import KaldiFrontEnd
from pipeline.spectrogram.settings import ClipsPerShard, SpectrogramParams, ValueRange
from pipeline.spectrogram.storing import store

CLIPS_PER_SHARD, CHUNK_FRAMES = 64, 256
_DISTINCT = 8  # computed clips; the others are these, rolled in time and with a little noise


def write_spectrogram(path: Path, clips: int, frames_per_clip: int, dtype: str) -> None:
    """Write a spectrogram of `clips` clips with `frames_per_clip` frames each."""
    params = SpectrogramParams(
        front_end=FRONT_END,
        dtype=dtype,  # type: ignore[arg-type]
        uint8_range=ValueRange(low=-16.0, high=12.0),
        mix="mean",
        silence="fail",
        copies=[],
        clips_per_shard=ClipsPerShard(minimum=CLIPS_PER_SHARD, average=CLIPS_PER_SHARD, maximum=CLIPS_PER_SHARD),
    )
    front_end, rng = KaldiFrontEnd(FRONT_END), np.random.default_rng(0)
    seconds = (frames_per_clip + 2) / 100
    originals = [
        front_end.log_mel(synthesise(seconds, 16000, seed=seed, channels=1)[:, 0].astype(np.float32))[:frames_per_clip]
        for seed in range(_DISTINCT)
    ]
    noise = rng.normal(0, 0.1, originals[0].shape).astype(np.float32)
    group = FRAMES.create(path / "frames.zarr", params.metadata)
    rows: list[tuple[str | int | float, ...]] = []
    shards: dict[str, int] = {}
    for first in range(0, clips, CLIPS_PER_SHARD):
        name = f"shard{first:06d}"
        pieces: list[np.ndarray] = []
        for number in range(first, min(first + CLIPS_PER_SHARD, clips)):
            turn = int(rng.integers(frames_per_clip))
            stored, _ = store(np.roll(originals[number % _DISTINCT] + noise, turn, axis=0), params.metadata)
            start = len(pieces) * frames_per_clip
            file = (16000, 1, 8000.0)  # rate, channels and bandwidth
            place = (name, start, frames_per_clip)
            rows.append((f"clip{number:06d}", f"{number:032d}", *place, 0.0, 0.0, *file, "ok", "", ""))
            pieces.append(stored)
        FRAMES.arrays["*"].write(group, name, np.concatenate(pieces), (CHUNK_FRAMES, FRONT_END.n_mels))
        shards[name] = len(pieces) * frames_per_clip
    columns = dict(zip(INDEX.columns, map(list, zip(*rows, strict=True)), strict=True))
    INDEX.write(
        path / "index.parquet", columns, {"shards": shards, "front_end": params.metadata, "version": "benchmark"}
    )
