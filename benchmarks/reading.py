"""Benchmark of reading shuffled batches of stored frames: Sonolex's reader, zarr-python and a memory map.

    python -m benchmarks.reading --clips 4096 --batch 64

A clip is 128 KB: 1,000 frames of uint8 or 500 of float16, 128 bands. `sonolex` returns padded batches as in training, which
become float32 on the device; `sonolex, float32` includes this conversion, on the CPU. Both detect damage. `tensorstore
alone`, `zarr-python` and `memory map` return clips as stored, the last without checks. The files are in the system's cache,
so the program is measured and not the disk.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import numpy as np
import torch
import typer
import zarr

from benchmarks.frames import write_spectrogram
from benchmarks.measuring import interleave, report, seconds_of, summary
from pipeline.artifacts.model import Normalisation
from pipeline.artifacts.spectrogram import Spectrogram, open_spectrogram
from pipeline.training.batches import Batches
from pipeline.training.inputs import open_inputs

Read = Callable[[list[np.ndarray]], None]  # function that reads batches of clips, given by number

LENGTHS = {"uint8": 1000, "float16": 500}  # frames of a clip of 128 KB


def run(clips: int, batch: int, batches: int, repeats: int) -> list[dict[str, Any]]:
    """Measure every way of reading and return the rows of the table."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="sonolex-bench-") as temporary:
        for dtype, length in LENGTHS.items():
            path = Path(temporary) / dtype
            write_spectrogram(path, clips, length, dtype)
            spectrogram = open_spectrogram(path)
            rng = np.random.default_rng(0)
            order = [rng.choice(clips, batch, replace=False) for _ in range(batches)]
            ways = {
                "sonolex": (_sonolex(path, spectrogram), order),
                "sonolex, float32": (_sonolex(path, spectrogram, torch.device("cpu")), order),
                "tensorstore alone": (_tensorstore(spectrogram), order),
                "zarr-python": (_zarr_python(spectrogram), order[: max(2, batches // 8)]),
                "memory map": (_memory_map(spectrogram, path.with_suffix(".npy")), order),
            }
            for read, some in ways.values():
                read(some[:2])
            times = interleave({name: partial(_rate, *way) for name, way in ways.items()}, repeats)
            ours = summary(times["sonolex"])["best"]
            for name, rates in times.items():
                best = summary(rates)
                row = {"what": name, "clip": f"{length} x 128 {dtype}", "clips/s": best["best"]}
                rows.append(row | {"median": best["median"], "sonolex / this": ours / best["best"]})
    return rows


def _rate(read: Read, order: list[np.ndarray]) -> float:
    return sum(len(rows) for rows in order) / seconds_of(lambda: read(order))


def _sonolex(path: Path, spectrogram: Spectrogram, device: torch.device | None = None) -> Read:
    normalisation = Normalisation(kind="corpus", std_scale=1.0, mean=-6.0, std=4.0)
    with patch("pipeline.training.batches.CACHE_BYTES", 0):  # as for a corpus that does not fit into memory
        batches = Batches(open_inputs("frames", path, None), spectrogram.index.list("clip_id"), normalisation)

    def read(order: list[np.ndarray]) -> None:
        for batch in batches.ahead(rows.tolist() for rows in order):
            if device is not None:
                batch.to(device)

    return read


def _in_turn(read: Callable[[np.ndarray], object]) -> Read:
    def work(order: list[np.ndarray]) -> None:
        for rows in order:
            read(rows)  # not kept, as in training: keeping batches would cost new memory for each

    return work


def _places(spectrogram: Spectrogram) -> list[tuple[str, int, int]]:
    return list(zip(*(spectrogram.index.list(name) for name in ("shard", "start", "num_frames")), strict=True))


def _tensorstore(spectrogram: Spectrogram) -> Read:
    import tensorstore

    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 128 << 20}})
    arrays = {
        shard: tensorstore.open(
            {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(spectrogram.frames_path / shard)}},
            read=True,
            recheck_cached_data=False,
            context=context,
        ).result()
        for shard in spectrogram.index.metadata["shards"]
    }
    places = _places(spectrogram)

    def read(rows: np.ndarray) -> list[np.ndarray]:
        pending = [arrays[s][start : start + count].read() for s, start, count in (places[row] for row in rows)]
        return [future.result() for future in pending]

    return _in_turn(read)


def _zarr_python(spectrogram: Spectrogram) -> Read:
    group, places = zarr.open_group(spectrogram.frames_path, mode="r"), _places(spectrogram)
    arrays: dict[str, Any] = {shard: group[shard] for shard in spectrogram.index.metadata["shards"]}
    return _in_turn(lambda rows: [arrays[s][a : a + count] for s, a, count in (places[row] for row in rows)])


def _memory_map(spectrogram: Spectrogram, path: Path) -> Read:
    group, places = zarr.open_group(spectrogram.frames_path, mode="r"), _places(spectrogram)
    firsts: dict[str, int] = {}
    arrays: list[np.ndarray] = []
    for shard in spectrogram.index.metadata["shards"]:
        firsts[shard] = sum(len(array) for array in arrays)
        stored: Any = group[shard]
        arrays.append(np.asarray(stored[...]))
    np.save(path, np.concatenate(arrays))
    mapped = np.load(path, mmap_mode="r")
    spans = [(firsts[shard] + start, count) for shard, start, count in places]
    return _in_turn(lambda rows: [np.array(mapped[a : a + count]) for a, count in (spans[row] for row in rows)])


def main(
    clips: int = 4096,
    batch: Annotated[int, typer.Option(help="clips")] = 64,
    batches: int = 64,
    repeats: int = 3,
    json: Annotated[Path | None, typer.Option(help="write the rows there")] = None,
) -> None:
    """Measure the reading of shuffled batches."""
    rows = run(clips, batch, batches, repeats)
    report("reading", f"shuffled batches of {batch} clips of 128 KB, of {clips}", rows, json_path=json)


if __name__ == "__main__":
    typer.run(main)
