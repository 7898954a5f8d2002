"""Reading frames: what was written comes back, in any order and batch; damage is named; statistics need no frames."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import make_spectrogram

from pipeline.artifacts.spectrogram import Spectrogram, open_spectrogram
from pipeline.errors import ArtifactError, CorpusError
from pipeline.spectrogram.normalisation import corpus_statistics
from pipeline.spectrogram.reader import FrameReader
from pipeline.spectrogram.storing import restore, store

LENGTHS = [1, 64, 65, 200, 3, 130, 64, 17, 40]


@pytest.fixture
def frames() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {f"clip{i}": rng.normal(-5, 3, (length, 6)).astype(np.float32) for i, length in enumerate(LENGTHS)}


@pytest.fixture
def spectrogram(tmp_path: Path, frames: dict[str, np.ndarray]) -> Spectrogram:
    return open_spectrogram(make_spectrogram(tmp_path / "spectrogram", frames, failed=["bad"]))


def test_what_was_written_comes_back_in_any_order(spectrogram: Spectrogram, frames: dict[str, np.ndarray]) -> None:
    reader = FrameReader(spectrogram)
    order = [*sorted(frames, reverse=True), "clip3", "clip3"]
    for clip_id, read in zip(order, reader.read(order), strict=True):
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, frames[clip_id])
    assert reader.read([]) == []


def test_clips_read_are_the_callers_own(spectrogram: Spectrogram, frames: dict[str, np.ndarray]) -> None:
    reader = FrameReader(spectrogram)
    reader.read(["clip3"])[0][:] = 0
    np.testing.assert_array_equal(reader.read(["clip3"])[0], frames["clip3"])


def test_failed_and_unknown_clips_have_no_frames(spectrogram: Spectrogram) -> None:
    reader = FrameReader(spectrogram)
    assert reader.ok(["clip2", "bad", "clip0", "stranger"]) == ["clip2", "clip0"]
    assert reader.num_frames("clip2") == 65
    for clip_id in ("bad", "stranger"):
        with pytest.raises(KeyError, match=clip_id):
            reader.read([clip_id])


def _shard_file(spectrogram: Spectrogram, shard: str) -> Path:
    return spectrogram.frames_path / shard / "c" / "0" / "0"


def test_a_flipped_byte_is_an_error_that_names_the_shard(spectrogram: Spectrogram) -> None:
    path = _shard_file(spectrogram, "shard0004")
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0xFF
    path.write_bytes(data)
    reader = FrameReader(spectrogram)
    assert len(reader.read(["clip0"])) == 1
    with pytest.raises(ArtifactError, match=r"shard0004: chunk: expected frames as written.*spectrogram"):
        reader.read([f"clip{i}" for i in range(4, 8)])


def test_a_shard_that_lost_its_end_is_an_error(spectrogram: Spectrogram) -> None:
    path = _shard_file(spectrogram, "shard0000")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ArtifactError, match="shard0000"):
        FrameReader(spectrogram).read(["clip3"])


def test_a_shard_deleted_after_opening_is_an_error_and_not_silence(spectrogram: Spectrogram) -> None:
    reader = FrameReader(spectrogram)
    _shard_file(spectrogram, "shard0000").unlink()
    with pytest.raises(ArtifactError, match="shard0000"):
        reader.read(["clip3"])


def test_statistics_are_those_of_the_values(spectrogram: Spectrogram, frames: dict[str, np.ndarray]) -> None:
    chosen = ["clip1", "clip5", "bad"]
    values = np.concatenate([frames["clip1"], frames["clip5"]]).astype(np.float64)
    mean, deviation = corpus_statistics(spectrogram, chosen)
    assert mean == pytest.approx(values.mean(), rel=1e-12)
    assert deviation == pytest.approx(values.std(), rel=1e-9)


def test_statistics_of_no_frames_or_unknown_clips_are_refused(spectrogram: Spectrogram) -> None:
    with pytest.raises(CorpusError, match="none in 1 clips"):
        corpus_statistics(spectrogram, ["bad"])
    with pytest.raises(ArtifactError, match="clip stranger: expected a row of the index"):
        corpus_statistics(spectrogram, ["clip0", "stranger"])


def test_uint8_is_off_by_half_a_step_at_most_and_counts_what_it_clips() -> None:
    metadata = {"dtype": "uint8", "scale": 26 / 255, "offset": -16.0}
    values = np.linspace(-16, 10, 1001, dtype=np.float32)
    stored, num_clipped = store(values, metadata)
    assert num_clipped == 0
    assert (stored.min(), stored.max()) == (0, 255)
    np.testing.assert_allclose(restore(stored, metadata), values, atol=13 / 255 + 1e-5)
    stored, num_clipped = store(np.array([-20.0, 0.0, 30.0], dtype=np.float32), metadata)
    assert num_clipped == 2
    np.testing.assert_allclose(restore(stored, metadata)[[0, 2]], [-16, 10], atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0.0), ("float16", 0.004)])
def test_floats_are_stored_as_they_are(dtype: str, tolerance: float) -> None:
    metadata = {"dtype": dtype, "scale": 1.0, "offset": 0.0}
    values = np.linspace(-15.94, 8, 1001, dtype=np.float32)
    stored, num_clipped = store(values, metadata)
    assert (stored.dtype, num_clipped) == (dtype, 0)
    np.testing.assert_allclose(restore(stored, metadata), values, atol=tolerance)


def test_threads_may_read_at_once(tmp_path: Path) -> None:
    frames = {f"clip{i}": np.full((30, 6), i, dtype=np.float32) for i in range(8)}
    reader = FrameReader(open_spectrogram(make_spectrogram(tmp_path / "spectrogram", frames)))

    def read(number: int) -> bool:
        clip = f"clip{number % 8}"
        return all(np.array_equal(found, frames[clip]) for found in reader.read([clip] * 3))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(400)))
