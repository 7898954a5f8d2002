"""Inputs in worker processes: a DataLoader started in any way, after the parent has read, hangs in none."""

import multiprocessing
import pickle
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_spectrogram
from torch.utils.data import DataLoader, Dataset

from pipeline.artifacts.spectrogram import open_spectrogram
from pipeline.errors import ArtifactError
from pipeline.spectrogram.reader import FrameReader
from pipeline.training.inputs import FrameInputs

LIMIT = 120  # seconds


@pytest.fixture(autouse=True)
def deadline() -> Iterator[None]:
    """End a test that hangs."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f"still waiting after {LIMIT} s")

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(LIMIT)
    yield
    signal.alarm(0)


class Clips(Dataset[torch.Tensor]):
    """What a person would write to feed a DataLoader from the inputs of a model."""

    def __init__(self, inputs: FrameInputs, clip_ids: list[str]) -> None:
        self.inputs, self.clip_ids = inputs, clip_ids

    def __len__(self) -> int:
        return len(self.clip_ids)

    def __getitem__(self, row: int) -> torch.Tensor:
        return torch.from_numpy(self.inputs.arrays([self.clip_ids[row]])[0])


@pytest.fixture
def frames() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {f"clip{i}": generator.normal(-5, 3, (70 + i, 6)).astype(np.float32) for i in range(10)}


@pytest.fixture
def path(tmp_path: Path, frames: dict[str, np.ndarray]) -> Path:
    return make_spectrogram(tmp_path / "spectrogram", frames)


@pytest.mark.parametrize(
    "method",
    ["fork", pytest.param("forkserver", marks=pytest.mark.slow), pytest.param("spawn", marks=pytest.mark.slow)],
)
def test_a_data_loader_reads_after_its_parent_has(path: Path, frames: dict[str, np.ndarray], method: str) -> None:
    inputs = FrameInputs(open_spectrogram(path))
    inputs.arrays(list(frames))
    loader = DataLoader(
        Clips(inputs, list(frames)), batch_size=None, num_workers=2, multiprocessing_context=method, timeout=LIMIT / 2
    )
    for read, expected in zip(loader, frames.values(), strict=True):
        np.testing.assert_array_equal(read.numpy(), expected)
    np.testing.assert_array_equal(inputs.arrays(["clip3"])[0], frames["clip3"])


def _damage(path: Path) -> None:
    file = path / "frames.zarr" / "shard0004" / "c" / "0" / "0"
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 0xFF
    file.write_bytes(data)


def _lose(path: Path) -> None:
    (path / "frames.zarr" / "shard0004" / "c" / "0" / "0").unlink()


@pytest.mark.parametrize("harm", [_damage, _lose])
def test_damage_is_named_in_a_forked_process_too(
    path: Path, frames: dict[str, np.ndarray], harm: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.artifacts.forks.threads_lost", lambda: True)
    reader = FrameReader(open_spectrogram(path))
    assert callable(harm)
    harm(path)
    np.testing.assert_array_equal(reader.read(["clip9", "clip0"])[1], frames["clip0"])
    with pytest.raises(ArtifactError, match=r"shard0004: (chunk|shard): expected .*rerun it with .*spectrogram"):
        reader.read([f"clip{i}" for i in range(4, 8)])


def test_a_forked_process_writes_what_its_parent_writes(tmp_path: Path, frames: dict[str, np.ndarray]) -> None:
    """tensorstore ends a process that was forked from one in which it had written."""
    make_spectrogram(tmp_path / "parent", frames)
    child = multiprocessing.get_context("fork").Process(target=make_spectrogram, args=(tmp_path / "child", frames))
    child.start()
    child.join(LIMIT / 2)
    assert child.exitcode == 0
    shards = sorted(path.relative_to(tmp_path / "parent") for path in (tmp_path / "parent").rglob("c/0/0"))
    assert shards
    for shard in shards:
        assert (tmp_path / "child" / shard).read_bytes() == (tmp_path / "parent" / shard).read_bytes()


def test_a_reader_travels_after_it_has_read(path: Path, frames: dict[str, np.ndarray]) -> None:
    reader = FrameReader(open_spectrogram(path))
    reader.read(["clip1"])
    copy = pickle.loads(pickle.dumps(reader))
    assert not copy._arrays
    np.testing.assert_array_equal(copy.read(["clip1"])[0], frames["clip1"])
