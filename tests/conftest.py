"""Builders of small things that are known by construction; tests import them with `from conftest import ...`."""

import csv
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from _pytest.logging import LogCaptureHandler

from pipeline.artifacts.clips import CLIPS
from pipeline.artifacts.development import write_development
from pipeline.artifacts.duplicates import DUPLICATES
from pipeline.artifacts.files import file_digest
from pipeline.artifacts.spectrogram import FRAMES, INDEX
from pipeline.artifacts.splits import open_split

REPOSITORY = Path(__file__).parents[1]
ESC10 = REPOSITORY.parent / "shared" / "data" / "esc10"

# Metadata of predictions that say something of their model, where a test does not ask for them.
OF_A_MODEL = {"reads": "frames", "params": {"kind": "majority"}, "num_parameters": 1, "clips_seen": 1}

# Files that take longest, in this order, before all others: two workers then end at about the same time.
LONGEST = ("test_reporting.py", "test_repro.py", "test_graph.py", "test_distributed.py", "test_same_bytes.py")

# Rate, channels and bandwidth of clips whose frames are given.
SOURCE = (16000, 1, 8000.0)

WAV_CLASSES = ("tone", "noise", "clicks")


@pytest.fixture(autouse=True)
def same_logging() -> Iterator[None]:
    """Leave logging as it was found: commands in the process of the tests send records of level INFO to their own stderr."""
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)
    for handler in root.handlers[:]:
        if not isinstance(handler, LogCaptureHandler):  # pytest's own
            root.removeHandler(handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def make_waveform(
    kind: str, seconds: float = 0.5, sample_rate: int = 16000, *, frequency: float = 1000.0, seed: int = 0
) -> np.ndarray:
    """Return a waveform (sample,) float32 of at most 0.5 in size; kind: tone, chirp, clicks, noise or silence."""
    times = np.arange(round(seconds * sample_rate)) / sample_rate
    if kind == "tone":
        waveform = 0.5 * np.sin(2 * np.pi * frequency * times)
    elif kind == "chirp":  # from 0 Hz to `frequency`
        waveform = 0.5 * np.sin(np.pi * frequency * times**2 / max(seconds, 1e-9))
    elif kind == "clicks":  # every 50 ms
        waveform = 0.5 * (np.arange(len(times)) % (sample_rate // 20) == 0)
    elif kind == "noise":
        waveform = np.clip(0.1 * np.random.default_rng(seed).standard_normal(len(times)), -0.5, 0.5)
    elif kind == "silence":
        waveform = np.zeros(len(times))
    else:
        raise ValueError(f"unknown kind {kind}")
    return waveform.astype(np.float32)


def make_wav_corpus(root: Path, *, folds: int = 2, clips_per_class: int = 2, seconds: float = 0.5) -> Path:
    """Write a corpus laid out as ESC-50 (audio/, meta/esc50.csv): three classes, `clips_per_class` in each fold."""
    (root / "audio").mkdir(parents=True)
    (root / "meta").mkdir()
    rows = []
    for target, kind in enumerate(WAV_CLASSES):
        for fold in range(1, folds + 1):
            for take in range(clips_per_class):
                source = f"{1000 * fold + 100 * take + target}"
                name = f"{fold}-{source}-A-{target}.wav"
                seed = int(source)
                waveform = make_waveform(kind, seconds, 16000, frequency=500.0 + 100 * take + 50 * fold, seed=seed)
                hiss = make_waveform("noise", seconds, 16000, seed=seed + 1) * 0.02
                soundfile.write(root / "audio" / name, waveform + hiss, 16000, subtype="PCM_16")
                rows.append([name, fold, target, kind, True, source, "A"])
    with (root / "meta" / "esc50.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filename", "fold", "target", "category", "esc10", "src_file", "take"])
        writer.writerows(rows)
    return root


def make_clips(path: Path, root: Path, sources: Sequence[str], **columns: Sequence[Any]) -> Path:
    """Write a manifest of whole files below `root`, in this order, all of one class unless `columns` say otherwise."""
    count = len(sources)
    values: dict[str, Sequence[Any]] = {
        "clip_id": [Path(source).stem for source in sources],
        "source": list(sources),
        "member": [""] * count,
        "offset": [0] * count,
        "size": [0] * count,
        "start": [0.0] * count,
        "duration": [0.0] * count,
        "labels": [[0]] * count,
        "group": [Path(source).stem for source in sources],
        "fold": ["1"] * count,
        "content": [file_digest(root / source) if (root / source).is_file() else "" for source in sources],
        "unknown": [[]] * count,
        "weight": [0.0] * count,
    }
    classes = [f"class {i}" for i in range(1 + max((max(x, default=0) for x in columns.get("labels", [])), default=0))]
    metadata = {"corpus": "test", "classes": classes, "label_kind": "one", "licence": ""}
    CLIPS.write(path, values | columns, metadata)
    return path


def make_spectrogram(
    path: Path,
    frames: Mapping[str, np.ndarray],
    *,
    failed: Sequence[str] = (),
    clips_per_shard: int = 4,
    front_end: Mapping[str, Any] | None = None,
) -> Path:
    """Write a spectrogram artifact of given frames: clip_id -> (frame, mel); `failed` clips come last in the index.

    `front_end` are the metadata of the one that made the frames, where it matters.
    """
    n_mels = next(iter(frames.values())).shape[1]
    metadata = {
        "front_end": "kaldi",
        "units": "ln(power)",
        "sample_rate": 16000,
        "n_fft": 512,
        "win_length": 400,
        "hop_length": 160,
        "n_mels": n_mels,
        "f_min": 20.0,
        "f_max": 8000.0,
        "log_floor": float(np.log(np.finfo(np.float32).eps)),
        "frame_rate": 100.0,
        "params": {"kind": "kaldi"},
        "dtype": "float32",
        "scale": 1.0,
        "offset": 0.0,
    } | dict(front_end or {})
    clip_ids = list(frames)
    arrays, rows = {}, []
    for first in range(0, len(clip_ids), clips_per_shard):
        shard, start = f"shard{first:04d}", 0
        for clip in clip_ids[first : first + clips_per_shard]:
            values = frames[clip].astype(np.float64)
            place = (clip, f"key of {clip}", shard, start, len(values))
            rows.append((*place, values.sum(), (values**2).sum(), *SOURCE, "ok", "", ""))
            start += len(values)
        arrays[shard] = np.concatenate([frames[c] for c in clip_ids[first : first + clips_per_shard]])
    rows += [
        (clip, "", "", 0, 0, 0.0, 0.0, 0, 0, 0.0, "failed", "missing", "expected a file, found none") for clip in failed
    ]
    group = FRAMES.create(path / "frames.zarr", metadata)
    for shard, values in arrays.items():
        FRAMES.arrays["*"].write(group, shard, values.astype(np.float32), chunks=(64, n_mels))
    columns = dict(zip(INDEX.columns, map(list, zip(*rows, strict=True)), strict=True))
    shards = {shard: len(values) for shard, values in arrays.items()}
    INDEX.write(path / "index.parquet", columns, {"shards": shards, "front_end": metadata, "version": "test"})
    return path


def make_development(path: Path, spectrogram: Path, split: Path) -> Path:
    """Write the development set of a split for the frames of a spectrogram."""
    write_development(path, open_split(split), INDEX.open(spectrogram / "index.parquet"))
    return path


def make_duplicates(
    path: Path, pairs: Sequence[tuple[str, str]] = (), *, searched: bool = True, lag: float = 0.0
) -> Path:
    """Write a table of near-duplicates, each pair with a correlation of 0.9 and the same lag in seconds."""
    rows = [
        {"clip_id": one, "other_id": other, "correlation": 0.9, "lag": lag, "identical": False} for one, other in pairs
    ]
    table = pa.Table.from_pylist(rows, schema=DUPLICATES.arrow)
    DUPLICATES.write(path, table, {"searched": searched, "threshold": 0.8})
    return path


def documented_metric() -> tuple[str, str]:
    """Return path and source of the metric that docs/extending.md adds."""
    section = (REPOSITORY / "docs" / "extending.md").read_text().partition("## A metric")[2]
    found = re.search(r"write `([\w/.]+)`:\n\n```python\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return found[1], found[2]


@pytest.fixture
def wav_corpus(tmp_path: Path) -> Path:
    """Return the root of a dozen half-second clips: three classes, two folds."""
    return make_wav_corpus(tmp_path / "corpus")


@pytest.fixture(scope="session")
def esc10_root() -> Path:
    """Return the root of the real ESC-10, or skip the test where it is absent."""
    if not (ESC10 / "audio").is_dir():
        pytest.skip(f"needs ESC-10 at {ESC10}")
    return ESC10


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a workspace in which everything has run once. It is shared: whoever changes it puts it back, or copies it."""
    from workspace import finish, make_workspace  # import torch, which not every test needs

    return finish(make_workspace(tmp_path_factory.mktemp("finished") / "workspace"))
