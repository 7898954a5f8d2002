"""Benchmark of `dvc status` for a store of AudioSet's size, with nothing changed.

    python -m benchmarks.status_scale --clips 2000000 --clips-per-shard 256 [--folder DIR]

Makes a temporary repository with the manifest and the split of made-up videos (as in `manifest_scale`), and a spectrogram of
all clips with the real number of shards, but one frame per clip: DVC compares names, times and sizes, and does not read
known files. Records them with `dvc commit`, the only time that DVC reads everything, and then measures the status.
"""

import shutil
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table as Grid

from benchmarks.manifest_scale import pretend_tars, write_tables
from benchmarks.workspace import make_repository, run_in
from pipeline.artifacts.clips import open_clips
from pipeline.artifacts.layout import Layout
from pipeline.artifacts.spectrogram import FRAMES, INDEX, SpectrogramMetadata, open_spectrogram
from pipeline.corpora.content import STORE_PATH

N_MELS = 128


def main(
    clips: Annotated[
        int, typer.Option(help="how many, at least 110,000 for every class to be in every set")
    ] = 2_000_000,
    clips_per_shard: Annotated[int, typer.Option()] = 256,
    folder: Annotated[Path | None, typer.Option(help="to work in; default: the system's temporary one")] = None,
) -> None:
    scratch = Path(tempfile.mkdtemp(prefix="status_scale-", dir=folder))
    try:
        workspace = scratch / "workspace"
        (scratch / "audio").mkdir()
        pretend_tars(scratch / "audio", write_tables(scratch / "audio", clips), workspace / STORE_PATH)
        tables = (f"corpus.tables.{name}={name}.csv" for name in ("bal_train", "unbal_train", "eval"))
        make_repository(workspace, "audioset", [f"corpus.root={scratch / 'audio'}", *tables, "duplicates.search=false"])
        run_in(workspace, "dvc", "repro", "-q", "corpus")
        layout = Layout(workspace)
        write_spectrogram(layout.spectrogram, layout.clips, clips_per_shard)
        grid = Grid(title=f"{clips:,} clips in shards of {clips_per_shard}", title_justify="left")
        for name in ("step", "seconds"):
            grid.add_column(name, justify="left" if name == "step" else "right")
        started = time.perf_counter()
        opened = open_spectrogram(layout.spectrogram)
        grid.add_row(
            f"open the spectrogram, check its {len(opened.index.metadata['shards']):,} shards", _since(started)
        )
        for title, command in (
            ("dvc commit, once", ("dvc", "commit", "-q", "-f", "spectrogram")),
            ("duplicates (not searched) and split", ("dvc", "repro", "-q", "-s", "duplicates", "split@official")),
            ("dvc status spectrogram", ("dvc", "status", "-q", "spectrogram")),
            ("dvc status, all stages", ("dvc", "status")),
            ("dvc status, all stages, again", ("dvc", "status")),
        ):
            started = time.perf_counter()
            run_in(workspace, *command)
            grid.add_row(title, _since(started))
        Console(width=160).print(grid)
    finally:
        shutil.rmtree(scratch)


def write_spectrogram(path: Path, clips_path: Path, clips_per_shard: int) -> None:
    """Write a valid spectrogram of all clips of a manifest, with one frame of zeros for each."""
    clip_ids = open_clips(clips_path).list("clip_id")
    metadata: SpectrogramMetadata = {
        "front_end": "kaldi", "units": "ln(power)", "sample_rate": 16000, "n_fft": 512, "win_length": 400,
        "hop_length": 160, "n_mels": N_MELS, "f_min": 20.0, "f_max": 8000.0, "log_floor": -16.0, "frame_rate": 100.0,
        "params": {}, "dtype": "uint8", "scale": 1.0, "offset": 0.0,
    }  # fmt: skip
    group = FRAMES.create(path / "frames.zarr", metadata)
    shards: dict[str, int] = {}
    names: list[str] = []
    starts: list[int] = []
    for first in range(0, len(clip_ids), clips_per_shard):
        name, count = f"{first:032x}", min(clips_per_shard, len(clip_ids) - first)
        FRAMES.arrays["*"].write(group, name, np.full((count, N_MELS), first % 251, dtype=np.uint8))
        shards[name] = count
        names += [name] * count
        starts += range(count)
    ones, zeros, empty = np.ones(len(clip_ids), dtype=np.int64), np.zeros(len(clip_ids)), [""] * len(clip_ids)
    columns = {
        "clip_id": clip_ids, "key": clip_ids, "shard": names, "start": starts, "num_frames": ones, "sum": zeros,
        "sum_of_squares": zeros, "sample_rate": ones, "num_channels": ones, "bandwidth": zeros,
        "status": ["ok"] * len(clip_ids), "reason": empty, "message": empty,
    }  # fmt: skip
    INDEX.write(path / "index.parquet", columns, {"shards": shards, "front_end": metadata, "version": "simulated"})


def _since(started: float) -> str:
    return f"{time.perf_counter() - started:.1f}"


if __name__ == "__main__":
    typer.run(main)
