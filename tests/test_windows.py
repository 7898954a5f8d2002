"""Windows: where they lie, that each is what decoding reads of that part, and that memory does not grow with the file."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline.errors import SonolexError
from pipeline.inference.prediction import Prediction
from pipeline.inference.timeline import Region, regions, write_label_track
from pipeline.inference.windows import Windowing, WindowReader, array_windows, pool_logits, segments, window_bounds
from pipeline.spectrogram import decoding
from pipeline.spectrogram.decoding import decode, prepare_waveform
from pipeline.spectrogram.sources import BadClip


def write(path: Path, seconds: float, rate: int, channels: int = 1, **options: str) -> Path:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (round(seconds * rate), channels))
    soundfile.write(path, samples, rate, **options)
    return path


@pytest.mark.parametrize(
    ("num_samples", "window", "hop", "expected"),
    [
        (100, 1.0, 0.5, [(0, 10), (5, 15)]),  # the first two of a sound of ten seconds
        (10, 1.0, 0.5, [(0, 10)]),
        (7, 1.0, 0.5, [(0, 7)]),  # shorter than a window
        (12, 1.0, 0.5, [(0, 10), (2, 12)]),  # the last one ends with the sound
        (20, 1.0, 0.5, [(0, 10), (5, 15), (10, 20)]),
        (40, 1.0, 2.5, [(0, 10), (25, 35), (30, 40)]),  # gaps
    ],
)
def test_where_windows_lie(num_samples: int, window: float, hop: float, expected: list[tuple[int, int]]) -> None:
    bounds = window_bounds(num_samples, 10, Windowing(window, hop))
    assert bounds[: len(expected)] == expected
    assert bounds[-1][1] == num_samples
    assert len(bounds) == (19 if num_samples == 100 else len(expected))


@pytest.mark.parametrize(("window", "expected"), [(1.0, 16), (10.0, 16), (20.0, 8), (100.0, 1), (1000.0, 1)])
def test_long_windows_are_read_few_at_once(window: float, expected: int) -> None:
    assert Windowing(window, window).at_once(16) == expected


@pytest.mark.parametrize(
    ("name", "rate", "channels", "tolerance"),
    [
        ("a.wav", 44100, 2, 0.0),
        ("a.flac", 22050, 1, 0.0),
        ("a.wav", 16000, 1, 0.0),
        ("a.ogg", 48000, 2, 1e-6),
        ("a.mp3", 44100, 1, 1e-3),  # a decoder that starts in the middle of a stream rounds otherwise
    ],
)
def test_a_window_is_the_clip_of_its_start_and_duration(
    tmp_path: Path, name: str, rate: int, channels: int, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / name, 3.3, rate, channels)
    monkeypatch.setattr(decoding, "_BLOCK", 5000)  # many blocks a window
    reader = WindowReader(path, Windowing(1.0, 0.37))
    windows = reader.take(3) + reader.take(100)
    assert len(windows) == reader.num_windows == 8
    for window in windows:
        duration = window.end - window.start
        clip = decode(path, start=window.start, duration=duration, sample_rate=16000, max_duration=60)
        own = prepare_waveform(window.samples, rate, sample_rate=16000, min_samples=1, where="")
        np.testing.assert_allclose(own, clip, atol=tolerance)
    assert windows[-1].end == pytest.approx(reader.seconds)


def test_windows_have_the_mix_of_clips(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", 2.2, 16000, channels=2)
    both, _ = soundfile.read(path, dtype="float32")
    for mix, channel in (("left", 0), ("right", 1)):
        for window in WindowReader(path, Windowing(1.0, 0.5), mix=mix).take(99):  # type: ignore[arg-type]
            first = round(window.start * 16000)
            np.testing.assert_array_equal(window.samples, both[first : first + 16000, channel])
    soundfile.write(path, np.stack([both[:, 0], -both[:, 0]], axis=1), 16000, subtype="FLOAT")
    with pytest.raises(BadClip, match="cancelling: "):
        WindowReader(path, Windowing(1.0, 0.5)).take(99)


def test_windows_of_an_array_are_those_of_its_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", 2.2, 8000)
    samples, rate = soundfile.read(path, dtype="float32")
    windowing = Windowing(1.0, 0.5)
    for own, read in zip(array_windows(samples, rate, windowing), WindowReader(path, windowing).take(99), strict=True):
        assert own[:2] == read[:2]
        np.testing.assert_array_equal(own.samples, read.samples)


def test_memory_is_a_window_and_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.wav", 20.0, 8000)
    monkeypatch.setattr(decoding, "_BLOCK", 1000)
    reader = WindowReader(path, Windowing(1.0, 0.5))
    held = []
    while reader.take(1):
        held.append(len(reader._buffer))
    assert len(held) == reader.num_windows == 39
    assert max(held) <= 8000 + 1000


def test_a_silent_window_is_no_fault_but_a_silent_file_is(tmp_path: Path) -> None:
    samples = np.zeros(16000)
    samples[12000:] = np.random.default_rng(0).uniform(-0.1, 0.1, 4000)
    soundfile.write(tmp_path / "half.wav", samples, 8000)
    windows = WindowReader(tmp_path / "half.wav", Windowing(0.5, 0.5)).take(9)
    assert [bool(window.samples.any()) for window in windows] == [False, False, False, True]
    soundfile.write(tmp_path / "all.wav", np.zeros(16000), 8000)
    with pytest.raises(BadClip, match=r"all\.wav: expected sound, found samples that are all the same") as caught:
        WindowReader(tmp_path / "all.wav", Windowing(0.5, 0.5)).take(9)
    assert caught.value.reason == "silent"


def test_a_file_that_is_cut_short_is_found_out_by_every_thread(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac", 60.0, 8000)
    path.write_bytes(path.read_bytes()[:-100_000])
    reader = WindowReader(path, Windowing(5.0, 5.0))
    for _ in range(2):
        with pytest.raises(BadClip, match=r"truncated: .*a\.flac: expected 480000 samples, as its header says"):
            reader.take(99)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [("none.wav", None, "missing"), ("a.wav", b"", "empty"), ("a.wav", b"text" * 20, "unreadable")],
)
def test_files_that_cannot_be_opened_have_the_reasons_of_decoding(
    tmp_path: Path, name: str, content: bytes | None, reason: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(BadClip) as own:
        WindowReader(tmp_path / name, Windowing(1.0, 0.5))
    with pytest.raises(BadClip) as clip:
        decode(tmp_path / name, start=0, duration=0, sample_rate=16000, max_duration=60)
    assert own.value.reason == clip.value.reason == reason


def test_a_wav_that_is_cut_short_is_found_out_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", 1.0, 8000)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(BadClip, match="truncated"):
        WindowReader(path, Windowing(0.5, 0.5))


@pytest.mark.parametrize(
    ("window", "hop", "pool", "message"),
    [
        (0.001, None, "mean", r"window: expected seconds, at least 0\.025 for one frame of this model, found 0\.001"),
        (-1, None, "mean", "window: expected seconds"),
        (float("nan"), None, "mean", "window: expected seconds"),
        (1.0, 0.0, "mean", r"hop: expected seconds, at least 0\.001, found 0; 0\.5 is half a window"),
        (1.0, 0.5, "median", r"pool: expected one of mean, max, found 'median'"),
    ],
)
def test_windows_that_cannot_be_are_named(window: float, hop: float | None, pool: str, message: str) -> None:
    with pytest.raises(SonolexError, match=message):
        Windowing.of(window, hop, pool, shortest=0.025)


def test_pooling() -> None:
    logits = np.log([[0.9, 0.1], [0.3, 0.7]]).astype(np.float32)
    np.testing.assert_allclose(np.exp(pool_logits(logits, "softmax", "mean")), [0.6, 0.4], atol=1e-6)
    np.testing.assert_allclose(np.exp(pool_logits(logits + 5, "softmax", "max")), [0.9, 0.7], atol=1e-6)
    np.testing.assert_array_equal(pool_logits(logits, "sigmoid", "max"), logits.max(axis=0))
    mean = pool_logits(np.array([[0.0], [2.0]], np.float32), "sigmoid", "mean")
    assert 1 / (1 + np.exp(-mean[0])) == pytest.approx((0.5 + 1 / (1 + np.exp(-2.0))) / 2)


def test_overlapping_windows_share_time() -> None:
    assert segments([(0, 5), (2.5, 7.5), (5, 10)]) == [(0, 3.75), (3.75, 6.25), (6.25, 10)]
    assert segments([(0, 5), (7, 12)]) == [(0, 5), (7, 12)]


def window(start: float, *scores: float) -> Prediction:
    thresholds, values = np.array([0.5, 0.2]), np.array(scores)
    return Prediction("a.wav", start, start + 2, ["dog", "rain"], "many", thresholds, np.log(values), values)


def test_regions_join_windows_of_one_label(tmp_path: Path) -> None:
    windows = [window(0, 0.9, 0.1), window(1, 0.6, 0.2), window(2, 0.4, 0.3), window(3, 0.9, 0.1)]
    expected = [Region(0, 2.5, "dog"), Region(1.5, 3.5, "rain"), Region(3.5, 5, "dog")]
    assert regions(windows) == expected
    write_label_track(tmp_path / "a.txt", windows)
    assert (tmp_path / "a.txt").read_text().splitlines()[1] == "1.500000\t3.500000\train"


def test_a_gap_between_windows_ends_a_region() -> None:
    assert regions([window(0, 0.9, 0.1), window(3, 0.9, 0.1)]) == [Region(0, 2, "dog"), Region(3, 5, "dog")]
