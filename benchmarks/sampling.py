"""Benchmark of the bytes read for a vocabulary's sample, compared with those of the whole store.

    python -m benchmarks.sampling --clips 4000

Counted by the kernel (`rchar` of /proc/self/io), in a separate process, from an opened spectrogram to a drawn sample.
`visited` is the lower bound: the chunks of clips from which a frame is kept.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.frames import CHUNK_FRAMES, write_spectrogram
from benchmarks.measuring import report
from pipeline.artifacts.spectrogram import Spectrogram, open_spectrogram
from pipeline.spectrogram.reader import FrameReader
from pipeline.vocabulary.sampling import choose_frames, draw_sample

_FRAMES_PER_CLIP = 1000


def bytes_read() -> int:
    """Return the number of bytes that this process has read, from the disk or from the system's cache."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("rchar"))


def draw(path: Path, sample_frames: int) -> int:
    """Draw a sample and return the bytes that it read."""
    spectrogram = open_spectrogram(path)
    reader = FrameReader(spectrogram)
    before = bytes_read()
    draw_sample(reader, spectrogram.index.list("clip_id"), sample_frames=sample_frames, seed=0)
    return bytes_read() - before


def needed(spectrogram: Spectrogram, sample_frames: int) -> int:
    """Return the bytes of the chunks, each counted once, that hold the clips of the sample."""
    index = spectrogram.index
    places = {
        clip: (shard, start, count)
        for clip, shard, start, count in zip(
            *(index.list(name) for name in ("clip_id", "shard", "start", "num_frames")), strict=True
        )
    }
    chosen = choose_frames({clip: place[2] for clip, place in places.items()}, sample_frames=sample_frames, seed=0)
    chunks = set()
    for clip in chosen:
        shard, start, count = places[clip]
        chunks |= {(shard, chunk) for chunk in range(start // CHUNK_FRAMES, (start + count - 1) // CHUNK_FRAMES + 1)}
    return len(chunks) * CHUNK_FRAMES * spectrogram.n_mels


def run(clips: int, parts: list[float]) -> list[dict[str, Any]]:
    """Draw samples of several sizes and return the rows of the table."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="sonolex-bench-") as temporary:
        path = Path(temporary) / "spectrogram"
        write_spectrogram(path, clips, _FRAMES_PER_CLIP, "uint8")
        spectrogram = open_spectrogram(path)
        size = sum(file.stat().st_size for file in (path / "frames.zarr").rglob("0") if file.is_file())
        for part in parts:
            frames = round(part * clips * _FRAMES_PER_CLIP)
            command = [sys.executable, "-m", "benchmarks.sampling", "--draw", str(path), "--frames", str(frames)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - ourselves
            read, least = int(done.stdout.split()[-1]), needed(spectrogram, frames)
            rows.append(
                {
                    "sample": f"{frames:,} frames, {100 * part:g} %",
                    "store, MB": size / 1e6,
                    "read, MB": read / 1e6,
                    "of the store": read / size,
                    "visited, MB": least / 1e6,
                    "read / visited": read / least,
                }
            )
    return rows


def main(
    clips: int = 4000,
    draw_from: Annotated[Path | None, typer.Option("--draw", help="only draw, and print the bytes read")] = None,
    frames: Annotated[int, typer.Option(help="with --draw: of the sample")] = 0,
    json: Annotated[Path | None, typer.Option(help="write the rows there")] = None,
) -> None:
    """Measure how much of a spectrogram fitting reads."""
    if draw_from is not None:
        typer.echo(draw(draw_from, frames))
        return
    rows = run(clips, [0.0005, 0.005, 0.05, 1.0])
    report("sampling", f"drawing a vocabulary's sample from {clips} clips of 1,000 frames", rows, json_path=json)


if __name__ == "__main__":
    typer.run(main)
