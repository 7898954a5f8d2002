"""Benchmark of the objects and bytes that `dvc push` sends after the corpus grew by one per cent.

    python -m benchmarks.remote_increment [--clips 4000] [--seconds 1] [--folder DIR]

Makes a corpus described by a table, builds its spectrogram under DVC in a temporary repository, and pushes it into a folder;
then adds clips and pushes again. New clips whose names sort after all others (a date, a running number) fall into the last
shards; clips with random names (content hashes, video ids) are scattered over the corpus, and each changes the shard that it
falls into. Prints Markdown.
"""

import argparse
import csv
import hashlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from rich.console import Console

from benchmarks.workspace import make_repository, run_in
from pipeline.artifacts.layout import Layout
from pipeline.artifacts.spectrogram import open_spectrogram

SAMPLE_RATE = 16_000  # Hz
CLASSES = 10


class Push(NamedTuple):
    """Objects that one push added to the remote, and the state of the corpus."""

    title: str
    clips: int  # in the corpus
    shards: int
    changed: int  # shards that the previous push did not have
    objects: int
    size: int  # bytes
    frame_objects: int  # of them, shards
    frame_size: int  # bytes
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=4000)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each clip")
    parser.add_argument("--folder", type=Path, help="an empty or new folder to work in; default: a temporary one")
    settings = parser.parse_args()
    console = Console(width=300, highlight=False)
    console.print(
        "| push | clips | shards | shards that changed | objects sent | MB sent | of these frames | push took |"
    )
    console.print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=settings.folder) as scratch:
        for push in pushes(Path(scratch), settings.clips, settings.seconds):
            console.print(
                f"| {push.title} | {push.clips:,} | {push.shards} | {push.changed} | {push.objects} "
                f"| {push.size / 1e6:.2f} | {push.frame_objects} objects, {push.frame_size / 1e6:.2f} MB "
                f"| {push.seconds:.1f} s |"
            )


def pushes(scratch: Path, num_clips: int, seconds: float) -> Iterator[Push]:
    """Push a corpus, then with 1 % more clips at its end, then with 1 % more scattered over it."""
    workspace, shelf, audio = (scratch / name for name in ("workspace", "shelf", "audio"))
    make_workspace(workspace, shelf, audio)
    grown = max(1, num_clips // 100)
    # Names that sort between existing ones, at random places, like hashes.
    places = [int(hashlib.sha256(str(number).encode()).hexdigest(), 16) % num_clips for number in range(grown)]
    steps = {
        "first": [f"a{number:06d}.wav" for number in range(num_clips)],
        "1 % at the end": [f"b{number:06d}.wav" for number in range(grown)],
        "1 % scattered": [f"a{place:06d}-{number}.wav" for number, place in enumerate(places)],
    }
    before: set[str] = set()
    num_listed = 0
    for title, names in steps.items():
        add_clips(workspace, audio, names, seconds)
        num_listed += len(names)
        run_in(workspace, "dvc", "repro", "spectrogram")
        shards = set(open_spectrogram(Layout(workspace).spectrogram).index.metadata["shards"])
        yield Push(title, num_listed, len(shards), len(shards - before), *push_measured(workspace, shelf))
        before = shards


def make_workspace(workspace: Path, shelf: Path, audio: Path) -> None:
    """Make a repository with a corpus by table and a folder as remote."""
    audio.mkdir()
    table = (
        f"corpus={{kind: table, root: {audio}, table: clips.csv, path_column: path, labels_column: label, "
        "label_separator: null, label_kind: one, classes: null, fold_column: null, group_column: null, start_column: null, "
        "duration_column: null, licence: '', max_bad_fraction: 0.0, max_duration: 60.0}"
    )
    make_repository(workspace, "demo", [table])
    run_in(workspace, "dvc", "remote", "add", "-q", "--local", "--default", "shelf", str(shelf))


def add_clips(workspace: Path, audio: Path, names: Sequence[str], seconds: float) -> None:
    """Write clips, each a different tone in noise, and append them to the corpus's table."""
    times = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    table = workspace / "clips.csv"
    fresh = not table.exists()
    with table.open("a", newline="") as file:
        writer = csv.writer(file)
        if fresh:
            writer.writerow(["path", "label"])
        for name in names:
            generator = np.random.default_rng(list(name.encode()))
            tone = 0.3 * np.sin(2 * np.pi * generator.uniform(100, 6000) * times)
            soundfile.write(audio / name, tone + 0.05 * generator.standard_normal(len(times)), SAMPLE_RATE)
            writer.writerow([name, f"class {generator.integers(CLASSES)}"])


def push_measured(workspace: Path, shelf: Path) -> tuple[int, int, int, int, float]:
    """Push the manifest and the spectrogram; return the last fields of `Push`."""
    before = objects_in(shelf)
    started = time.perf_counter()
    run_in(workspace, "dvc", "push", "-q", "corpus", "spectrogram")
    seconds = time.perf_counter() - started
    sent = {path: size for path, size in objects_in(shelf).items() if path not in before}
    # DVC names an object by the MD5 of its content.
    chunks = (path.read_bytes() for path in open_spectrogram(Layout(workspace).spectrogram).frames_path.glob("*/c/0/0"))
    frames = {hashlib.md5(content, usedforsecurity=False).hexdigest() for content in chunks}
    frame_sizes = [size for path, size in sent.items() if "".join(path.parts[-2:]) in frames]
    return len(sent), sum(sent.values()), len(frame_sizes), sum(frame_sizes), seconds


def objects_in(shelf: Path) -> dict[Path, int]:
    """Return the objects of a folder used as remote, with their sizes in bytes."""
    return {path: path.stat().st_size for path in shelf.rglob("*") if path.is_file()}


if __name__ == "__main__":
    main()
