"""Seeded bit flips in what outlives a run: memo entries, checkpoints, the index of contents; size and time stay.

`python tests/flips.py 150` prints a table: of so many flips of each kind, how many ended well and how many did not.
"""

import contextlib
import logging
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_clips, make_development, make_wav_corpus
from faults import flip
from test_kinds import make_params
from test_spectrogram_stage import PARAMS
from test_training import make_examples, train_small

from pipeline.artifacts.files import file_digest
from pipeline.artifacts.spectrogram import open_spectrogram
from pipeline.artifacts.splits import SPLIT
from pipeline.corpora.content import content_digests
from pipeline.errors import SonolexError
from pipeline.execution.executors import ExecutionParams
from pipeline.params import validate_params
from pipeline.spectrogram.settings import SpectrogramParams
from pipeline.training import loop
from stages import spectrogram, tokenize, vocabulary

OTHER_SIZES = {"clips_per_shard": {"minimum": 3, "average": 6, "maximum": 9}}  # every shard copies from others


def attack(
    whole: Path, files: str, use: Callable[[Path], object], expected: Callable[[Path], object], count: int
) -> Counter[str]:
    """Flip `count` bits, each in a fresh copy of the folder `whole`, in one of `files` (a pattern); count the outcomes.

    `use(copy)` is compared with `expected(copy)` of an undamaged one. Outcomes: right, named (a SonolexError), traceback
    (any other exception), silent (another result).
    """
    generator, outcomes = np.random.default_rng(0), Counter[str]()
    value = expected(_copied(whole))
    for _ in range(count):
        copy = _copied(whole)
        damaged = sorted(file for file in copy.glob(files) if file.is_file())
        flip(damaged[generator.integers(len(damaged))], generator)
        try:
            outcomes["right" if use(copy) == value else "silent"] += 1
        except SonolexError:
            outcomes["named"] += 1
        except Exception:
            logging.getLogger(__name__).info("%s", files, exc_info=True)
            outcomes["traceback"] += 1
    return outcomes


def _copied(whole: Path) -> Path:
    copy = whole.with_name("copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole, copy)  # with the times of files
    return copy


def memo_workspace(folder: Path) -> Path:
    """Make a workspace with a corpus, and a memo that holds its spectrogram and its token sequences."""
    workspace = folder / "whole"
    root = make_wav_corpus(workspace / "corpus", seconds=0.1)
    make_clips(workspace / "clips.parquet", root, sorted(f"audio/{file.name}" for file in (root / "audio").iterdir()))
    with contextlib.chdir(workspace):
        build(workspace)
        ids = open_spectrogram(Path("spectrogram")).index.list("clip_id")
        split = {"clip_id": ids, "role": ["train"] * len(ids)}
        SPLIT.write(Path("split.parquet"), split, {"fold": "1", "seed": 0, "rule": "by hand"})
        params = make_params(num_tokens=6, sample_frames=100)
        development = make_development(Path("development.parquet"), Path("spectrogram"), Path("split.parquet"))
        vocabulary.run(params, Path("spectrogram"), development, Path("1.zarr"), fold="1")
        tokenise(workspace)
    for name in ("spectrogram", "tokens"):  # copies would not be links of the memo's files
        shutil.move(workspace / name, workspace / f"{name} as it was")
    return workspace


def build(workspace: Path, **changed: Any) -> dict[str, bytes]:
    """Run the stage spectrogram in a workspace; return its files."""
    with contextlib.chdir(workspace):
        params = validate_params(SpectrogramParams, PARAMS | changed, "spectrogram")
        limits: Any = SimpleNamespace(root=Path("corpus").absolute(), max_bad_fraction=0.0, max_duration=5.0)
        spectrogram.run(params, limits, _execution(), Path("clips.parquet"), Path("spectrogram"))
        files = sorted(file for file in Path("spectrogram").rglob("*") if file.is_file())
        return {str(file): file.read_bytes() for file in files}


def tokenise(workspace: Path) -> bytes:
    """Run the stage tokenize in a workspace; return its file."""
    source = workspace / "spectrogram"
    if not source.exists():
        shutil.copytree(workspace / "spectrogram as it was", source)
    with contextlib.chdir(workspace):
        tokenize.run(_execution(), Path("spectrogram"), Path("1.zarr"), Path("tokens/1.parquet"), fold="1")
        return Path("tokens/1.parquet").read_bytes()


def _execution() -> ExecutionParams:
    return ExecutionParams(executor="local", scheduler="", workers=1, memo=Path("memo"))


def rows(folder: Path, count: int) -> Counter[str]:
    return attack(memo_workspace(folder), "memo/spectrogram/*/*/rows.parquet", build, build, count)


def donated_rows(folder: Path, count: int) -> Counter[str]:
    def use(workspace: Path) -> object:
        return build(workspace, **OTHER_SIZES)

    return attack(memo_workspace(folder), "memo/spectrogram/*/*/rows.parquet", use, use, count)


def donated_frames(folder: Path, count: int) -> Counter[str]:
    def use(workspace: Path) -> object:
        return build(workspace, **OTHER_SIZES)

    return attack(memo_workspace(folder), "memo/spectrogram/*/*/frames/**/*", use, use, count)


def tokens(folder: Path, count: int) -> Counter[str]:
    return attack(memo_workspace(folder), "memo/tokenize/*/*/tokens.parquet", tokenise, tokenise, count)


def entries(folder: Path, count: int) -> Counter[str]:
    def use(workspace: Path) -> object:
        return build(workspace), tokenise(workspace)

    return attack(memo_workspace(folder), "memo/*/*/*/entry.json", use, use, count)


def checkpoint(folder: Path, count: int) -> Counter[str]:
    """Resume a run that was killed in its third epoch."""
    (folder / "whole").mkdir(parents=True)

    def die_in_the_third(row: dict[str, float], _timing: object) -> None:
        if len(losses) == 2:
            raise KeyboardInterrupt
        losses.append(row["loss"])

    losses: list[float] = []
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
        train_small(folder / "whole" / "c", die_in_the_third)
    result = _trained(folder / "uninterrupted")
    return attack(folder / "whole", "c*", lambda copy: _trained(copy / "c"), lambda _: result, count)


def _trained(path: Path) -> tuple[list[bytes], list[dict[str, float]]]:
    model, trained = train_small(path, examples=make_examples(24))
    weights = [value.numpy().tobytes() for value in model.state_dict().values() if isinstance(value, torch.Tensor)]
    return weights, trained.history


def contents(folder: Path, count: int) -> Counter[str]:
    whole = folder / "whole"
    (whole / "audio").mkdir(parents=True)
    names = [f"audio/{index:03d}-some-recording.wav" for index in range(120)]
    with contextlib.chdir(_copied(whole)):  # paths are absolute in the index: it is made where it is used
        for name in names:
            Path(name).write_text(name)
            os.utime(name, (1_700_000_000, 1_700_000_000))
        content_digests(names, Path.cwd() / "content.sqlite")
        digests = [file_digest(Path(name)) for name in names]
    shutil.rmtree(whole)
    shutil.move(whole.with_name("copy"), whole)

    def use(copy: Path) -> object:
        with contextlib.chdir(copy):
            return content_digests(names, copy / "content.sqlite").digests

    return attack(whole, "content.sqlite", use, lambda _: digests, count)


KINDS: dict[str, Callable[[Path, int], Counter[str]]] = {
    "rows.parquet": rows,
    "rows.parquet of a donor": donated_rows,
    "frames of a donor": donated_frames,
    "tokens.parquet": tokens,
    "entry.json": entries,
    "checkpoint": checkpoint,
    "content.sqlite": contents,
}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def main(count: int, *kinds: str) -> None:
    outcomes = ("right", "named", "traceback", "silent")
    sys.stdout.write("| kind | " + " | ".join(outcomes) + " |\n")
    for kind in kinds or KINDS:
        with tempfile.TemporaryDirectory() as folder, _quiet():
            found = KINDS[kind](Path(folder), count)
        sys.stdout.write(f"| {kind} | " + " | ".join(str(found[outcome]) for outcome in outcomes) + " |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
