"""Near-duplicates: disguised copies of a recording are found, other takes are not, and roles follow where they count."""

import logging
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from conftest import REPOSITORY, make_clips, make_duplicates, make_spectrogram

from pipeline.artifacts.clips import open_clips
from pipeline.artifacts.duplicates import DUPLICATES, open_duplicates, pairs_of
from pipeline.artifacts.spectrogram import open_spectrogram
from pipeline.artifacts.splits import open_split
from pipeline.corpora.base import AudioParams
from pipeline.corpora.splitting import SplitParams
from pipeline.duplicates.bands import Scale, smooth_bands
from pipeline.duplicates.candidates import find_candidates
from pipeline.duplicates.correlation import correlate, correlate_at
from pipeline.duplicates.landmarks import VECTOR_SIZE, find_landmarks
from pipeline.duplicates.searching import Pair, find_pairs
from pipeline.duplicates.settings import DuplicateParams
from pipeline.errors import ArtifactError
from pipeline.execution.executors import ExecutionParams
from pipeline.params import read_params
from pipeline.reporting.near_duplicates import describe_duplicates
from pipeline.spectrogram.settings import SpectrogramParams
from stages import duplicates as duplicates_stage
from stages import spectrogram as spectrogram_stage
from stages import split as split_stage

RATE = 44100
THRESHOLD = 0.8


def make_sound(seed: int, seconds: float = 4.0, *, place: int = 0) -> np.ndarray:
    """Return calls of noise in changing bands over a bed of noise, (sample,) int16.

    `seed` draws the calls; `place` the noise, and by how little each call differs: another take of the same source.
    """
    calls, noise = np.random.default_rng(seed), np.random.default_rng([seed, place])
    count = round(seconds * RATE)
    spectrum = np.fft.rfft(noise.normal(size=count))
    frequencies, times = np.fft.rfftfreq(count, 1 / RATE), np.arange(count) / RATE
    sound = 0.01 * noise.normal(size=count)
    for start in np.arange(0, seconds, 0.4):
        low = calls.uniform(200, 4000) * noise.uniform(0.8, 1.25)
        band = np.fft.irfft(spectrum * ((frequencies > low) & (frequencies < 2 * low)), count)
        middle = start + calls.uniform(0, 0.3) + noise.uniform(-0.05, 0.05)
        width = calls.uniform(0.03, 0.1) * noise.uniform(0.6, 1.6)
        sound += calls.uniform(0.2, 1) * band / band.std() * np.exp(-(((times - middle) / width) ** 2))
    return (13000 * sound / np.abs(sound).max()).astype(np.int16)


def write(path: Path, sound: np.ndarray, rate: int = RATE, **format: Any) -> None:
    soundfile.write(path, sound, rate, **{"subtype": "PCM_16"} | format)


def add_chunk(path: Path) -> None:
    """Add a LIST chunk at the end of a WAV file."""
    content = path.read_bytes() + b"LIST\x10\x00\x00\x00INFOICMT\x04\x00\x00\x00abc\x00"
    path.write_bytes(content[:4] + (len(content) - 8).to_bytes(4, "little") + content[8:])


def list_chunk(path: Path, sound: np.ndarray) -> None:
    write(path, sound)
    add_chunk(path)


# Name -> file type, and how the copy is written.
LOSSLESS: dict[str, tuple[str, Callable[[Path, np.ndarray], None]]] = {
    "flac": ("flac", write),
    "list_chunk": ("wav", list_chunk),
    "24_bits": ("wav", lambda path, sound: write(path, sound.astype(np.int32) << 16, subtype="PCM_24")),
}
LOSSY: dict[str, tuple[str, Callable[[Path, np.ndarray], None]]] = {
    "ogg": ("ogg", lambda path, sound: write(path, sound, subtype="VORBIS")),
    "mp3": ("mp3", lambda path, sound: write(path, sound, subtype="MPEG_LAYER_III")),
    "6_dB_softer": ("wav", lambda path, sound: write(path, sound // 2)),
    "shifted_10_ms": ("wav", lambda path, sound: write(path, sound[RATE // 100 :])),
    "shifted_5_ms": ("wav", lambda path, sound: write(path, sound[RATE // 200 :])),
    "48_kHz": ("wav", lambda path, sound: write(path, soxr.resample(sound / 32768, RATE, 48000), 48000)),
    "one_sample_longer": ("wav", lambda path, sound: write(path, np.append(sound, np.int16(1000)))),
    "first_half": ("wav", lambda path, sound: write(path, sound[: len(sound) // 2])),
    "second_half": ("wav", lambda path, sound: write(path, sound[len(sound) // 2 :])),
    "after_silence": ("wav", lambda path, sound: write(path, np.append(np.zeros(RATE // 3, np.int16), sound))),
}
DISGUISES = LOSSLESS | LOSSY


def compute(folder: Path, files: Sequence[str]) -> Path:
    """Compute the spectrogram of files below a folder, in a workspace there, and return its path."""
    clips = make_clips(folder / "data/clips.parquet", folder, files)
    params = SpectrogramParams.model_validate(read_params(REPOSITORY / "params.yaml")["spectrogram"])
    corpus = AudioParams(root=folder, max_bad_fraction=0, max_duration=60)
    execution = ExecutionParams(executor="local", workers=1, scheduler="", memo=folder / "memo")
    spectrogram_stage.run(params, corpus, execution, clips, folder / "data/spectrogram")
    return folder / "data/spectrogram"


@pytest.fixture(scope="module")
def disguised(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Pair]:
    """Return the pairs found among three recordings, another take of each, and every disguise of the first."""
    folder = tmp_path_factory.mktemp("disguised")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for number in range(3):
            write(folder / f"sound_{number}.wav", make_sound(number))
            write(folder / f"take_{number}.wav", make_sound(number, place=1))
        for name, (ending, disguise) in DISGUISES.items():
            disguise(folder / f"{name}.{ending}", make_sound(0))
        files = ["sound_0.wav", *sorted(path.name for path in folder.iterdir() if path.name != "sound_0.wav")]
        found = find_pairs(open_spectrogram(compute(folder, files)), THRESHOLD)
    return {(pair.clip_id, pair.other_id): pair for pair in found}


@pytest.mark.parametrize("name", DISGUISES)
def test_a_disguised_copy_is_found(name: str, disguised: dict[tuple[str, str], Pair]) -> None:
    pair = disguised["sound_0", name]
    assert pair.identical == (name in LOSSLESS)
    assert pair.correlation == 1 if pair.identical else THRESHOLD <= pair.correlation <= 1
    expected = {"second_half": 2.0, "after_silence": -1 / 3}.get(name, 0.0)
    assert pair.lag == pytest.approx(expected, abs=0.015)


def test_other_recordings_and_other_takes_are_not_copies(disguised: dict[tuple[str, str], Pair]) -> None:
    copies = {"sound_0", *DISGUISES}
    assert [names for names in disguised if not set(names) <= copies] == []


def test_takes_of_one_source_do_correlate() -> None:
    """The takes of the test above have their calls at nearly the same times, in nearly the same bands."""
    scale, spectra = Scale(100.0, 1.0), [_spectrum(make_sound(0, place=place)) for place in (0, 1)]
    ones = [smooth_bands(frames, scale) for frames in spectra]
    assert 0.3 < correlate(*ones, 0, scale).correlation < THRESHOLD


def _spectrum(sound: np.ndarray) -> np.ndarray:
    """Return frames (frame, band) in dB of windows of 25 ms, every 10 ms."""
    starts = np.arange(0, len(sound) - 1102, 441)
    windows = sound[starts[:, None] + np.arange(1102)] / 32768 * np.hanning(1102)
    power = np.abs(np.fft.rfft(windows)[:, :512]) ** 2
    frames: np.ndarray = 10 * np.log10(power.reshape(len(starts), 64, 8).sum(axis=2) + 1e-10)
    return frames


def noise_frames(seed: int, frames: int = 400) -> np.ndarray:
    """Return log power (frame, mel) of stationary noise: independent values of one distribution."""
    generator = np.random.default_rng(seed)
    return np.log(generator.gamma(4.0, size=(frames, 64))).astype(np.float32)


def test_constant_sounds_and_noise_match_nothing(tmp_path: Path) -> None:
    silence = np.full((400, 64), -15.9, dtype=np.float32)
    hum = silence + 10 * (np.arange(64) == 7)
    frames = {f"noise_{seed}": noise_frames(seed) for seed in range(6)}
    frames |= {f"silence_{count}": silence[:count] for count in (100, 300, 400)}
    frames |= {f"hum_{count}": hum[:count] for count in (100, 300, 400)}
    assert find_pairs(open_spectrogram(make_spectrogram(tmp_path / "s", frames)), 0.5) == []


def test_noise_is_found_again(tmp_path: Path) -> None:
    frames = {"noise": noise_frames(0), "softer": noise_frames(0)[100:] - 3, "other": noise_frames(1)}
    (pair,) = find_pairs(open_spectrogram(make_spectrogram(tmp_path / "s", frames)), THRESHOLD)
    assert pair[:2] == ("noise", "softer")
    assert pair.lag == pytest.approx(1.0)


@pytest.mark.parametrize("count", [1, 2, 20, 60])
def test_clips_shorter_than_a_window_are_compared(count: int, tmp_path: Path) -> None:
    frames = {"one": noise_frames(0, count), "softer": noise_frames(0, count) - 3, "other": noise_frames(1, count)}
    found = find_pairs(open_spectrogram(make_spectrogram(tmp_path / "s", frames)), THRESHOLD)
    assert [pair[:2] for pair in found] == ([("one", "softer")] if count >= 20 else [])  # of less, nothing is known


def test_of_equal_frames_one_stands_for_all(tmp_path: Path) -> None:
    sound = noise_frames(0)
    frames = {"a": sound, "b": noise_frames(1), "c": sound, "d": sound - 3, "e": sound}
    found = find_pairs(open_spectrogram(make_spectrogram(tmp_path / "s", frames)), THRESHOLD)
    assert [(pair.clip_id, pair.other_id, pair.identical) for pair in found] == [
        ("a", "c", True), ("a", "d", False), ("a", "e", True)
    ]  # fmt: skip


@pytest.mark.parametrize("frame_rate", [43.07, 62.5])
def test_lags_are_in_seconds_whatever_the_front_end(frame_rate: float, tmp_path: Path) -> None:
    rates = {"sample_rate": 22050, "hop_length": round(22050 / frame_rate), "units": "dB"}
    rates["frame_rate"] = rates["sample_rate"] / rates["hop_length"]
    frames = {"one": 4 * noise_frames(0), "later": 4 * noise_frames(0)[50:]}
    (pair,) = find_pairs(open_spectrogram(make_spectrogram(tmp_path / "s", frames, front_end=rates)), THRESHOLD)
    assert pair.lag == pytest.approx(50 / rates["frame_rate"], abs=1e-3)


def test_landmarks_of_a_part_are_those_of_the_whole() -> None:
    scale = Scale(100.0, 1.0)
    bands = smooth_bands(_spectrum(make_sound(0, 8.0)), scale)
    whole, part = find_landmarks(bands, scale), find_landmarks(bands[150:], scale)
    inner = whole.positions[whole.positions > 250]
    assert len(inner) > 3
    assert set(inner - 150) <= set(part.positions)
    np.testing.assert_allclose(np.linalg.norm(whole.vectors.astype(float), axis=1), 1, atol=1e-2)


def test_many_landmarks_are_searched_in_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """The inverted file finds the copies that the exact search finds."""
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(3000, VECTOR_SIZE)).astype(np.float32)
    vectors[1500:1600] = vectors[:100] + 0.1 * generator.normal(size=(100, VECTOR_SIZE))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    owners, positions = np.arange(3000) // 3, np.arange(3000, dtype=np.int32) % 3
    exact = find_candidates(owners, positions, vectors)
    monkeypatch.setattr("pipeline.duplicates.candidates._EXACT", 1000)
    monkeypatch.setattr("pipeline.duplicates.candidates._CELL", 150)
    cells = find_candidates(owners, positions, vectors)
    assert len(exact) == 34  # clips: three landmarks each
    assert cells.tolist() == exact.tolist()
    assert cells.tolist() == find_candidates(owners, positions, vectors).tolist()


def test_the_lag_is_refined() -> None:
    scale = Scale(100.0, 1.0)
    bands = smooth_bands(_spectrum(make_sound(0)), scale)
    match = correlate(bands, bands[40:], 37, scale)
    assert match.lag == 40
    assert match.correlation == pytest.approx(1, abs=1e-3)
    assert correlate_at(bands, bands, 390, scale) == 0  # too little in common


# the stages


def test_the_stage_writes_the_same_bytes_twice_and_nothing_without_a_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    frames = {"one": noise_frames(0), "softer": noise_frames(0) - 3, "other": noise_frames(1)}
    path = make_spectrogram(tmp_path / "s", frames, failed=["lost"])
    for name in ("a", "b"):
        duplicates_stage.run(DuplicateParams(search=True, threshold=THRESHOLD), path, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    made = open_duplicates(tmp_path / "a")
    assert pairs_of(made, "softer")["clip_id"].to_pylist() == ["one"]
    duplicates_stage.run(DuplicateParams(search=False, threshold=THRESHOLD), path, tmp_path / "c")
    assert len(open_duplicates(tmp_path / "c")) == 0
    # Clips that are added without a copy leave the table as it is, so that no split runs.
    more = make_spectrogram(tmp_path / "more", {"added": noise_frames(9), **frames})
    duplicates_stage.run(DuplicateParams(search=True, threshold=THRESHOLD), more, tmp_path / "d")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "d").read_bytes()


def make_manifest(folder: Path, folds: str) -> Path:
    """Write a manifest of clips a, b, c ... with these folds, whose files differ."""
    names = [chr(ord("a") + number) for number in range(len(folds))]
    for name in names:
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.wav").write_text(name)
    return make_clips(folder / "clips.parquet", folder, [f"{name}.wav" for name in names], fold=[*folds])


def split(folder: Path, action: Any, fold: str, pairs: Sequence[tuple[str, str]], folds: str = "112233") -> str:
    """Return the initials of the roles that the stage gives: r for train, e for test, x for excluded."""
    clips, path = make_manifest(folder, folds), make_duplicates(folder / "duplicates.parquet", pairs)
    params = SplitParams(num_folds=3, validation_fraction=0.0, seed=0, near_duplicates=action)
    split_stage.run(params, clips, path, folder / "split.parquet", fold)
    return "".join(role[1] for role in open_split(folder / "split.parquet").list("role"))


@pytest.mark.parametrize(
    ("action", "fold", "expected"),
    [
        ("report", "1", "eerrrr"),
        ("exclude", "1", "eexrrx"),  # c is a's copy, and f that of c
        ("exclude", "2", "xreerx"),
        ("exclude", "3", "xrxree"),
    ],
)
def test_copies_across_roles_are_reported_or_excluded(
    action: str,
    fold: str,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert split(tmp_path / "c", action, fold, [("a", "c"), ("c", "f")]) == expected
    assert ("with a near-duplicate in a later role: 2" in caplog.text) == (action == "report")
    assert ("near-duplicate" in caplog.text) == (action == "report")
    assert ("a (test) and c (train)" in caplog.text) == (action == "report")


def test_copies_in_one_role_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert split(tmp_path / "c", "exclude", "1", [("c", "e"), ("a", "b")]) == "eerrrr"
    assert not caplog.text


def test_drawn_folds_keep_copies_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pairs = list(combinations("bdf", 2))
    for fold in ("1", "2", "3"):
        roles = split(tmp_path / "c", "exclude", fold, pairs, [""] * 9)
        assert len({roles[1], roles[3], roles[5]}) == 1
        assert "x" not in roles


def test_a_pair_of_unknown_clips_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match=r"duplicates\.parquet: other_id: expected clips of .*, found z; "):
        split(tmp_path / "c", "report", "1", [("a", "z")])


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"correlation": 0.7}, "correlation: expected 0.8 to 1, found 0.7"), ({"other_id": "a"}, "found a twice")],
)
def test_pairs_out_of_range_are_refused(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    row = {"clip_id": "a", "other_id": "b", "correlation": 0.9, "lag": 0.0, "identical": False} | changed
    columns = {name: [value] for name, value in row.items()}
    DUPLICATES.write(tmp_path / "d.parquet", columns, {"searched": True, "threshold": 0.8})
    with pytest.raises(ArtifactError, match=message):
        open_duplicates(tmp_path / "d.parquet")


def test_the_report_lists_pairs_in_two_roles_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pairs = [("c", "d"), ("a", "e")]
    assert split(tmp_path / "c", "report", "1", pairs) == "eerrrr"
    clips, found = open_clips(tmp_path / "c/clips.parquet"), open_duplicates(tmp_path / "c/duplicates.parquet")
    described = describe_duplicates(clips, found, {"1": open_split(tmp_path / "c/split.parquet")})
    assert [(row.clip_id, row.separated) for row in described.rows] == [("a", {"1": ("test", "train")}), ("c", {})]
    assert (described.num_pairs, described.num_separated) == (2, 1)
    assert split(tmp_path / "c", "exclude", "1", pairs) == "eerrxr"
    described = describe_duplicates(clips, found, {"1": open_split(tmp_path / "c/split.parquet")})
    assert [(row.clip_id, row.excluded) for row in described.rows] == [("a", ["1"]), ("c", [])]


@pytest.mark.slow
def test_esc10_has_the_pairs_of_the_log(esc10_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of another front end than the log's: the pairs do not depend on it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "audio").symlink_to(esc10_root / "audio")
    files = [f"audio/{path.name}" for path in sorted((esc10_root / "audio").iterdir())]
    found = find_pairs(open_spectrogram(compute(tmp_path, files)), THRESHOLD)
    assert [pair[:2] for pair in found] == [
        ("2-28314-A-12", "2-30322-A-12"), ("2-28314-B-12", "2-30322-B-12"), ("3-151080-A-20", "5-151085-A-20")
    ]  # fmt: skip
