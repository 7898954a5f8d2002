"""Flipped bits in what stages read, and in what outlives a run: artifacts, memo, checkpoints, the index of contents.

A bit is flipped as a failing disk does it: the file's size, time and mode stay, so that only its content can tell. Every
trial has a fresh copy of a finished workspace, and its result is compared with that of an undamaged copy: the values of an
artifact that is opened; what a stage makes of the memo, or of a checkpoint; the digests that the index gives.
Tables of text hold numbers for people, and no digest: another digit in them is unknowable.
"""

import contextlib
import os
import shutil
import tarfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
from ruamel.yaml import YAML

from benchmarks.attack.bits import flip
from benchmarks.attack.outcomes import Outcome, Tally
from pipeline.artifacts.attention import open_attention
from pipeline.artifacts.clips import open_clips
from pipeline.artifacts.curves import read_epochs
from pipeline.artifacts.development import open_development, open_targets
from pipeline.artifacts.duplicates import open_duplicates
from pipeline.artifacts.files import file_digest
from pipeline.artifacts.layout import Layout
from pipeline.artifacts.missing import open_missing
from pipeline.artifacts.model import open_model
from pipeline.artifacts.ngram_perplexity import read_ngram_perplexity
from pipeline.artifacts.predictions import open_predictions
from pipeline.artifacts.spectrogram import open_spectrogram
from pipeline.artifacts.splits import open_split
from pipeline.artifacts.tables import Table
from pipeline.artifacts.thresholds import THRESHOLDS
from pipeline.artifacts.tokens import open_tokens
from pipeline.artifacts.vocabulary import open_vocabulary
from pipeline.corpora.content import STORE_PATH, content_digests
from pipeline.corpora.tars import index_tars
from pipeline.errors import SonolexError
from pipeline.spectrogram.reader import FrameReader
from pipeline.training import checkpoints, loop
from stages import spectrogram, tokenize, train

FOLD, VOCABULARY, MODEL = "1", "kmeans", "ast"  # of the workspace, which are attacked
_PARTS = ("params.yaml", "audio", "code", "data", "models", "predictions", "results", ".sonolex")  # of a workspace
_SIZES = {"minimum": 2, "average": 4, "maximum": 6}  # clips a shard, so that new shards are made of parts of others
_LONG_AGO = (1_700_000_000, 1_700_000_000)  # the index does not rely on the times of files that were just written

Use = Callable[[], object]  # in the folder of a copy: what is compared


class Target(NamedTuple):
    """Files that bits are flipped in, and what is done with them then."""

    kind: str
    files: str  # pattern, below a workspace
    use: Use
    prepare: Callable[[], object] = bool  # in the folder of the copy that all others are made of
    writes: bool = False  # whether `use` changes the folder
    text: bool = False  # no digest is promised


def attack(workspace: Path, folder: Path, targets: Sequence[Target], count: int, seed: int = 0) -> list[Tally]:
    """Flip `count` bits, shared by the targets, and return the outcomes; copies of the workspace are in `folder`."""
    shares = [count // len(targets) + (place < count % len(targets)) for place in range(len(targets))]
    return [_attack(workspace, folder, *pair, seed) for pair in zip(targets, shares, strict=True)]


def _attack(workspace: Path, folder: Path, target: Target, count: int, seed: int) -> Tally:
    generator, tally = np.random.default_rng(seed), Tally(f"flips: {target.kind}")
    whole, copy = folder / "whole", folder / "copy"  # one place for all, since the index holds absolute paths
    _copy(workspace, copy)
    with contextlib.chdir(copy):
        target.prepare()
    _copy(copy, whole)
    with contextlib.chdir(copy):
        expected = target.use()
    for _ in range(count):
        if target.writes:
            _copy(whole, copy)
        damaged = sorted(file for file in copy.glob(target.files) if file.is_file() and file.stat().st_size)
        path = damaged[generator.integers(len(damaged))]
        flip(path, generator)
        with contextlib.chdir(copy):
            outcome, found = _outcome(target, expected)
        tally.add(outcome, f"{path.relative_to(copy)}: {found}")
        if not target.writes:
            shutil.copy2(whole / path.relative_to(copy), path)
    return tally


def _copy(source: Path, target: Path) -> None:
    """Copy the parts of a workspace that stages read and write, with the times of files."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for part in filter(lambda name: (source / name).exists(), _PARTS):
        (shutil.copytree if (source / part).is_dir() else shutil.copy2)(source / part, target / part)


def _outcome(target: Target, expected: object) -> tuple[Outcome, str]:
    try:
        if target.use() == expected:
            return "right", ""
    except SonolexError as error:
        return "named", str(error)
    except Exception:
        return "traceback", traceback.format_exc()
    return ("unknowable" if target.text else "silent"), "another result"


# What is read of each artifact


def _table(opened: Table[Any]) -> object:
    return opened.metadata, opened.columns.to_pydict()


def _read_spectrogram() -> object:
    opened = open_spectrogram(Layout().spectrogram)
    frames = FrameReader(opened).read(opened.index.list("clip_id"))
    return _table(opened.index), opened.metadata, [values.tobytes() for values in frames]


def _read_vocabulary() -> object:
    opened = open_vocabulary(Layout().vocabulary(VOCABULARY, FOLD))
    space = opened.space
    arrays = (opened.codebooks, opened.levels, opened.counts, opened.merges, space.mean, space.scale, space.delta_scale)
    return opened.metadata, [values.tobytes() for values in (*arrays, space.centre, space.components)]


def _read_model() -> object:
    opened = open_model(Path(f"models/{MODEL}/{FOLD}/0"))
    return opened.metadata, {name: values.tobytes() for name, values in opened.weights.items()}


def _read_targets() -> object:
    development = open_development(Layout().development(FOLD), fold=FOLD)
    return _table(development), _table(open_targets(Layout().targets(FOLD), development))


def _tables(pattern: str, open_one: Callable[[Path], Table[Any]]) -> Target:
    return Target(pattern, pattern, lambda: [_table(open_one(path)) for path in sorted(Path().glob(pattern))])


ARTIFACTS = (
    _tables("data/clips.parquet", open_clips),
    _tables("data/missing.parquet", open_missing),
    _tables("data/duplicates.parquet", open_duplicates),
    _tables(f"data/splits/{FOLD}.parquet", open_split),
    _tables(f"data/tokens/*/{FOLD}.parquet", open_tokens),
    _tables("predictions/*/*/*.parquet", open_predictions),
    _tables("results/attention/*.parquet", open_attention),
    _tables("results/thresholds.parquet", THRESHOLDS.open),
    Target("data/spectrogram", "data/spectrogram/**/*", _read_spectrogram),
    Target("data/development", f"data/development/[ct]*/{FOLD}.parquet", _read_targets),
    Target("data/vocabulary", f"data/vocabulary/*/{FOLD}.zarr/**/*", _read_vocabulary),
    Target("models", f"models/{MODEL}/{FOLD}/0/*", _read_model),
    Target(
        "results/ngram_perplexity (text)", "results/ngram_perplexity/*/*.csv",
        lambda: [repr(read_ngram_perplexity(path)) for path in sorted(Path().glob("results/ngram_perplexity/*/*.csv"))],
        text=True,
    ),
    Target(
        "results/train (text)", f"results/train/{MODEL}/*/*/*.csv",
        lambda: repr(read_epochs(Path(f"results/train/{MODEL}/{FOLD}/0"))), text=True,
    ),
)  # fmt: skip


# What stages make of the memo


def _build() -> object:
    shutil.rmtree(Layout().spectrogram, ignore_errors=True)
    spectrogram.main()
    return _read_spectrogram()


def _build_in_other_shards() -> object:
    yaml = YAML()
    params = yaml.load(Path("params.yaml"))
    params["spectrogram"]["clips_per_shard"] = _SIZES
    yaml.dump(params, Path("params.yaml"))
    return _build()


def _tokenise() -> object:
    path = Layout().tokens(VOCABULARY, FOLD)
    path.unlink()
    tokenize.main(VOCABULARY, fold=FOLD)
    return path.read_bytes()


MEMO = (
    Target("memo, rows.parquet", ".sonolex/memo/spectrogram/*/*/rows.parquet", _build, writes=True),
    Target("memo, frames", ".sonolex/memo/spectrogram/*/*/frames/**/*", _build, writes=True),
    Target(
        "memo, rows of other shards", ".sonolex/memo/spectrogram/*/*/rows.parquet", _build_in_other_shards, writes=True
    ),
    Target(
        "memo, frames of other shards", ".sonolex/memo/spectrogram/*/*/frames/**/*", _build_in_other_shards, writes=True
    ),
    Target("memo, tokens.parquet", ".sonolex/memo/tokenize/*/*/tokens.parquet", _tokenise, writes=True),
    Target("memo, entry.json", ".sonolex/memo/*/*/*/entry.json", lambda: (_tokenise(), _build()), writes=True),
)


# What training makes of a checkpoint


def _stop_training() -> None:
    """Train until two epochs are saved, as a killed run leaves it."""
    yaml = YAML()
    params = yaml.load(Path("params.yaml"))
    params["train"]["epochs"] = 3
    yaml.dump(params, Path("params.yaml"))
    saved = 0
    save = checkpoints.save_checkpoint

    def save_twice(*arguments: object) -> None:
        nonlocal saved
        save(*arguments)  # type: ignore[arg-type] # passed on as they are
        saved += 1
        if saved == 2:
            raise KeyboardInterrupt

    with (
        patch.object(loop, "CHECKPOINT_SECONDS", 0.0),
        patch.object(checkpoints, "save_checkpoint", save_twice),
        contextlib.suppress(KeyboardInterrupt),
    ):
        train.main(MODEL, fold=FOLD, seed=0)


def _train() -> object:
    train.main(MODEL, fold=FOLD, seed=0)
    return [file.read_bytes() for file in sorted(Path(f"models/{MODEL}/{FOLD}/0").iterdir())]


CHECKPOINTS = (Target("checkpoints", ".sonolex/checkpoints/*", _train, _stop_training, writes=True),)


# What the index of contents says


def _sounds() -> list[Path]:
    return sorted(Path("audio").rglob("*.wav"))


def _age() -> Iterator[Path]:
    for path in _sounds():
        os.utime(path, _LONG_AGO)
        yield path


def _index_files() -> None:
    STORE_PATH.unlink(missing_ok=True)
    list(_age())
    _digests()


def _digests() -> object:
    names = [str(path) for path in _sounds()]
    found = list(content_digests(names, STORE_PATH).digests)
    if found != [file_digest(path) for path in _sounds()]:
        raise AssertionError("digests that are not those of the files")
    return found


def _index_tar() -> None:
    STORE_PATH.unlink(missing_ok=True)
    with tarfile.open("audio/all.tar", "w") as tar:
        for path in _age():
            tar.add(path)
    os.utime("audio/all.tar", _LONG_AGO)
    _members()


def _members() -> object:
    (index,) = index_tars([Path("audio/all.tar")], STORE_PATH)
    return index.members.to_pydict(), index.refused, index.damage


INDEX = (
    Target("index of files", str(STORE_PATH), _digests, _index_files, writes=True),
    Target("index of tars", str(STORE_PATH), _members, _index_tar, writes=True),
)

GROUPS = {"artifacts": ARTIFACTS, "memo": MEMO, "checkpoints": CHECKPOINTS, "index": INDEX}
