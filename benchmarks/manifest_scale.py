"""Benchmark of time and memory of a manifest of AudioSet's size, without decoding.

    python -m benchmarks.manifest_scale --clips 2000000 --audio tars

Writes tables of segments of made-up videos in a temporary folder (1.1 % balanced, 1 % evaluation, the rest unbalanced; the
classes are those of the real table, one to six a clip, some a thousand times rarer than others), and then runs, each in a
separate process:

    corpus, first      list, check, identify, write the manifest
    corpus, again      the same with nothing changed
    split              the stage: open the manifest, assign roles, prove that nothing leaks, write
    split, drawn       the same with a tenth of the training clips drawn for validation
    plan               open the manifest and cut it into shards

`--audio tars` simulates indexed tars: their indexes are put into the memo, with made-up digests, without any audio. `--audio
none` has no audio at all: the first run fails with a message, and the others are skipped. `--audio files` writes a file of a
few bytes for every clip: check the number of free inodes.
"""

import hashlib
import logging
import os
import resource
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table as Grid

from pipeline.artifacts.clips import open_clips
from pipeline.artifacts.duplicates import DUPLICATES
from pipeline.corpora.audioset import Params as AudiosetParams
from pipeline.corpora.audioset_files import read_classes
from pipeline.corpora.content import STORE_PATH, with_store
from pipeline.corpora.manifest import refresh_manifest
from pipeline.corpora.splitting import SplitParams
from pipeline.corpora.tar_walk import Member
from pipeline.corpora.tars import _TABLE, _as_table, _Known, _remember
from pipeline.errors import CorpusError
from pipeline.params import load_params, validate_params
from pipeline.spectrogram.building import find_known, open_memo, plan_shards
from pipeline.spectrogram.settings import SpectrogramParams
from stages import split as split_stage

PROJECT = Path(__file__).parents[1]
CLASS_TABLE = PROJECT / "metadata" / "audioset" / "class_labels_indices.csv"
_LETTERS = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", dtype="S1")
_CLIPS_PER_TAR = 40_000


def corpus_params(root: Path) -> AudiosetParams:
    tables = {name: f"{name}.csv" for name in ("bal_train", "unbal_train", "eval")}
    limits = {"max_bad_fraction": 0.05, "max_duration": 15.0, "missing": "drop"}
    whole: dict[str, object] = {"classes": None, "min_clips": 0, "parts": {}, "test_share": 0.0, "seed": 0}
    values = whole | {
        "kind": "audioset",
        "root": str(root),
        "tables": tables,
        "class_table": str(CLASS_TABLE),
        **limits,
    }
    return validate_params(AudiosetParams, values, "corpus")


def write_tables(root: Path, num_clips: int) -> dict[str, list[str]]:
    """Write the tables of segments and return the videos of each."""
    generator = np.random.default_rng(0)
    mids, _ = read_classes(CLASS_TABLE)
    weights = np.geomspace(1, 1e-3, len(mids))
    videos = _LETTERS[generator.integers(0, 64, (num_clips, 11))].view("S11")[:, 0].astype(str).tolist()
    labels = np.array(mids)[generator.choice(len(mids), 6 * num_clips, p=weights / weights.sum())].reshape(-1, 6)
    counts = generator.choice(np.arange(1, 7), num_clips, p=[0.4, 0.3, 0.15, 0.08, 0.05, 0.02])
    num_small = max(num_clips // 100, 1)
    parts = {"bal_train": (0, num_small), "eval": (num_small, 2 * num_small), "unbal_train": (2 * num_small, num_clips)}
    sets = {}
    for name, (first, last) in parts.items():
        rows = [
            f'{videos[i]}, 30.000, 40.000, "{",".join(dict.fromkeys(labels[i, : counts[i]]))}"\n'
            for i in range(first, last)
        ]
        # Every class occurs in every set, as in AudioSet: the split refuses classes without clips.
        for i in range(min(len(mids), len(rows))):
            rows[i] = f'{videos[first + i]}, 30.000, 40.000, "{mids[i]}"\n'
        (root / f"{name}.csv").write_text("# made up\n# made up\n# YTID, start_seconds, ...\n" + "".join(rows))
        sets[name] = videos[first:last]
    return sets


def pretend_tars(root: Path, sets: dict[str, list[str]], store_path: Path) -> None:
    """Write tars of one byte, and for each an index in the memo with these videos."""

    def write(store: sqlite3.Connection) -> None:
        store.execute(_TABLE)
        for name, videos in sets.items():
            for number, first in enumerate(range(0, len(videos), _CLIPS_PER_TAR)):
                path = root / f"{name}{number:02d}.tar"
                path.write_bytes(b"\0")
                members = videos[first : first + _CLIPS_PER_TAR]
                entries = [
                    Member(f"audio/{name}/{v}.flac", 512 + i * 1_400_320, 1_400_000) for i, v in enumerate(members)
                ]
                digests = [hashlib.sha256(v.encode()).hexdigest()[:32] for v in members]
                status = path.stat()
                known = _Known(status.st_size, status.st_mtime_ns, "", "", _as_table(entries, digests))
                _remember(store, path, known)

    with_store(store_path, write)


def write_files(root: Path, sets: dict[str, list[str]]) -> None:
    for name, videos in sets.items():
        for video in videos:
            path = root / name / video[:2] / f"{video}.flac"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(video)


def corpus(folder: Path) -> str:
    root = folder / "corpus"
    try:
        done = refresh_manifest(corpus_params(root), folder / "clips.parquet")
    except CorpusError as error:
        return f"stopped: {str(error).partition(', found ')[2].partition(';')[0][:60]} ..."
    return f"{done.num_clips} clips, {done.num_missing} missing, {done.num_hashed} files read, written: {done.written}"


def split(folder: Path, validation_fraction: float) -> str:
    DUPLICATES.write(
        folder / "duplicates.parquet", DUPLICATES.arrow.empty_table(), {"searched": False, "threshold": 1.0}
    )
    params = SplitParams(num_folds=5, validation_fraction=validation_fraction, seed=0, near_duplicates="report")
    split_stage.run(
        params, folder / "clips.parquet", folder / "duplicates.parquet", folder / "split.parquet", "official"
    )
    return f"{(folder / 'split.parquet').stat().st_size / 1e6:.0f} MB"


def plan(folder: Path) -> str:
    clips = open_clips(folder / "clips.parquet")
    params = load_params(SpectrogramParams, "spectrogram", PROJECT / "params.yaml")
    plans = plan_shards(clips, params.clips_per_shard)
    known = find_known(open_memo(folder / "memo", params, 15.0), plans, clips)
    return f"{len(plans)} shards, {len(known.todo)} to compute"


def _measured(work: Callable[..., str], folder: Path, arguments: tuple[Any, ...]) -> tuple[float, float, float, str]:
    os.chdir(folder)  # reports of stages go here
    logging.disable()
    started, started_cpu = time.perf_counter(), time.process_time()
    said = work(folder, *arguments)
    seconds, cpu = time.perf_counter() - started, time.process_time() - started_cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
    return seconds, cpu, peak, said


def main(
    clips: Annotated[
        int, typer.Option(help="how many, at least 110,000 for every class to be in every set")
    ] = 2_000_000,
    audio: Annotated[str, typer.Option(help="tars, files or none")] = "tars",
) -> None:
    folder = Path(tempfile.mkdtemp(prefix="manifest_scale-"))
    steps: list[tuple[str, Callable[..., str], tuple[Any, ...]]] = [("corpus, first", corpus, ())]
    if audio != "none":
        steps += [
            ("corpus, again", corpus, ()),
            ("split", split, (0.0,)),
            ("split, drawn", split, (0.1,)),
            ("plan", plan, ()),
        ]
    try:
        (folder / "corpus").mkdir()
        sets = write_tables(folder / "corpus", clips)
        if audio == "tars":
            pretend_tars(folder / "corpus", sets, folder / STORE_PATH)
        elif audio == "files":
            write_files(folder / "corpus", sets)
        del sets
        grid = Grid(title=f"{clips:,} clips, audio: {audio}", title_justify="left")
        for name in ("step", "seconds", "of processor", "peak GiB", "found"):
            grid.add_column(name, justify="left" if name in ("step", "found") else "right")
        total = total_cpu = highest = 0.0
        for name, work, arguments in steps:
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                seconds, cpu, peak, said = pool.submit(_measured, work, folder, arguments).result()
            grid.add_row(name, f"{seconds:.1f}", f"{cpu:.1f}", f"{peak:.2f}", said)
            total, total_cpu, highest = total + seconds, total_cpu + cpu, max(highest, peak)
        grid.add_row("all", f"{total:.1f}", f"{total_cpu:.1f}", f"{highest:.2f}", "")
        Console(width=160).print(grid)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    typer.run(main)
