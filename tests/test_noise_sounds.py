"""Noise that is added to clips: its ratio, the sounds of a folder, and coloured noise."""

import json
import logging
import os
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from experiments import run_experiment, runs_of
from networks import build
from test_spectral_augmentation import FRONT_END, METADATA, SCALE
from test_training import MODEL, PLAIN, SETTINGS
from typer.testing import CliRunner
from workspace import ROOT

from pipeline import stage_code
from pipeline.errors import ParamsError, SonolexError
from pipeline.execution.code import Sources, snapshot
from pipeline.params import read_params, validate_params
from pipeline.training.augmentation import noise_folder
from pipeline.training.augmentation.noise import NoiseBank, NoiseBanks, add_sounds
from pipeline.training.augmentation.noise_folder import find_sounds, sound_frames
from pipeline.training.augmentation.noise_sounds import coloured_noise, open_background, open_coloured_noise
from pipeline.training.augmentation.settings import AugmentationParams, BackgroundParams, ColouredNoiseParams
from pipeline.training.batches import Batch
from pipeline.training.classification import Classification
from pipeline.training.losses import loss_of
from pipeline.training.settings import TrainParams
from tools.sonolex import app


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of two sounds, and one below it, in a project of its own."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("a.wav", "b.flac", "street/c.wav")):
        path = tmp_path / "noise" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        samples = 0.1 * np.random.default_rng(number).standard_normal(8000 + 800 * number)
        soundfile.write(path, samples, 16000)
    return tmp_path / "noise"


def test_the_ratio_is_that_of_the_powers() -> None:
    torch.manual_seed(0)
    mask = torch.arange(50) < torch.tensor([[50], [30]])
    clips = torch.randn(2, 50, 64).masked_fill(~mask[:, :, None], 0.0)
    bank = NoiseBank([torch.randn(200, 64), torch.randn(20, 64)])
    found = add_sounds(clips, mask, bank, 1.0, [10.0, 10.0], SCALE)
    assert not found[~mask].any()
    for before, after, real in zip(clips, found, mask, strict=True):
        own, both = ((values[real].double() * SCALE.log_unit).exp().sum() for values in (before, after))
        assert (10 * (own / (both - own)).log10()).item() == pytest.approx(10, abs=1e-3)


def test_the_sum_is_that_of_waveforms() -> None:
    """A tone and noise in other bands: what the mixed waveform holds is what the mixed spectrogram shows."""
    times = np.arange(16000) / 16000
    own = 0.3 * np.sin(2 * np.pi * 500 * times).astype(np.float32)
    other = 0.03 * np.sin(2 * np.pi * 3000 * times).astype(np.float32)  # 20 dB below
    frames = [SCALE.normalise(torch.from_numpy(FRONT_END.log_mel(sound))) for sound in (own, other, own + other)]
    found = add_sounds(frames[0][None], None, NoiseBank([frames[1]]), 1.0, [20.0, 20.0], SCALE)[0]
    loud = frames[2] > 0
    assert loud.any(0).sum() > 6
    torch.testing.assert_close(found[loud], frames[2][loud], atol=0.15, rtol=0)


def test_sounds_of_a_folder_are_frames_of_the_front_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sounds = find_sounds(folder)
    assert [path.name for path in sounds.paths] == ["a.wav", "b.flac", "c.wav"]
    frames = sound_frames(sounds, METADATA)
    samples, _ = soundfile.read(folder / "a.wav", dtype="float32")
    np.testing.assert_array_equal(frames[0], FRONT_END.log_mel(samples))
    monkeypatch.setattr(noise_folder, "_compute", lambda *_: pytest.fail("frames are computed once"))
    for first, again in zip(frames, sound_frames(sounds, METADATA), strict=True):
        np.testing.assert_array_equal(first, again)


def test_damaged_kept_frames_are_computed_again(folder: Path) -> None:
    sounds = find_sounds(folder)
    frames = sound_frames(sounds, METADATA)
    (kept,) = Path(".sonolex/noise").rglob("frames.npz")
    kept.chmod(0o644)
    kept.write_bytes(kept.read_bytes()[:1000])
    np.testing.assert_array_equal(sound_frames(sounds, METADATA)[2], frames[2])


def test_a_clean_up_removes_kept_frames_that_nothing_uses(folder: Path) -> None:
    sounds = find_sounds(folder)
    sound_frames(sounds, METADATA)
    (kept,) = Path(".sonolex/noise").rglob("frames.npz")
    (folder / "a.wav").unlink()
    os.utime(kept.parent, (0, 0))
    newer = find_sounds(folder)
    sound_frames(newer, METADATA)
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    assert "background" in CliRunner().invoke(app, ["gc", "--max-days", "30"]).output
    assert [path.parent.name for path in Path(".sonolex/noise").rglob("frames.npz")] == [newer.digest]
    os.utime(newer_entry := next(Path(".sonolex/noise").rglob("frames.npz")).parent, (0, 0))
    sound_frames(newer, METADATA)
    assert newer_entry.stat().st_mtime > 0  # what is read is in use


def test_a_folder_without_sounds_is_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(
        SonolexError, match=r"background\.folder: expected a folder of sounds, found none at .*elsewhere"
    ):
        find_sounds(folder / "elsewhere")
    (folder / "empty").mkdir()
    with pytest.raises(SonolexError, match=r"background\.folder: expected audio files below .*empty, found none; name"):
        find_sounds(folder / "empty")
    (folder / "bad").mkdir()
    (folder / "bad" / "x.wav").write_bytes(b"no sound")
    with pytest.raises(SonolexError, match=r"expected sounds that can be decoded in .*bad, found none of 1: .*x\.wav"):
        sound_frames(find_sounds(folder / "bad"), METADATA)
    with caplog.at_level(logging.WARNING):
        assert len(sound_frames(find_sounds(folder), METADATA)) == 3
    assert "left out 1 of 4 files" in caplog.text


def test_more_sound_than_memory_takes_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise_folder, "_MOST_SECONDS", 1.0)
    with pytest.raises(SonolexError, match="name a folder with fewer files"):
        sound_frames(find_sounds(folder), METADATA)


def test_a_changed_file_changes_what_models_of_frames_follow_from(folder: Path) -> None:
    document = read_params(ROOT / "params.yaml")
    document = deepcopy(document)
    sources = Sources(ROOT, snapshot(ROOT))
    plain = stage_code.stage_files(document, sources)
    document["train"]["augmentation"]["background"] |= {"probability": 0.5, "folder": "noise"}
    with_noise = stage_code.stage_files(document, sources)
    (folder / "d.wav").write_bytes((folder / "a.wav").read_bytes())
    changed = stage_code.stage_files(document, sources)
    networks = {"train/ast"}
    assert {name for name in plain if with_noise[name] != plain[name]} == networks
    assert {name for name in plain if changed[name] != with_noise[name]} == networks
    (folder.parent / "noise").rename(folder.parent / "moved")
    (folder.parent / "moved" / "d.wav").rename(folder.parent / "moved" / "e.wav")
    document["train"]["augmentation"]["background"]["folder"] = "moved"
    assert stage_code.stage_files(document, sources)["train/ast"] != changed["train/ast"]


def test_a_model_trained_with_noise_is_evaluated_wherever_the_folder_lies(folder: Path, tmp_path: Path) -> None:
    """Later stages check the settings that `train` recorded: a folder's content is one, and not its place."""
    settings = (
        "experiment.frame_models=[ast]",
        "experiment.token_models=[]",
        "train.augmentation.background.probability=0.5",
        f"train.augmentation.background.folder={folder}",
    )
    workspace = run_experiment(tmp_path / "run", settings)
    recorded = json.loads((workspace / "models/ast/1/0/model.json").read_text())["settings"]
    assert recorded["train.augmentation.background.probability"] == 0.5
    assert all(path.exists() for _, path in runs_of(workspace))


@pytest.mark.parametrize(("colour", "slope"), [("white", 0), ("pink", -3), ("brown", -6), ("blue", 3), ("violet", 6)])
def test_coloured_noise_falls_by_decibels_per_octave(colour: Any, slope: float) -> None:
    noise = coloured_noise(colour, 1 << 17)
    powers = np.abs(np.fft.rfft(noise)) ** 2
    octaves = [10 * np.log10(powers[1 << place : 2 << place].mean()) for place in range(9, 16)]
    assert np.polyfit(range(7), octaves, 1)[0] == pytest.approx(slope, abs=0.3)
    bank = open_coloured_noise(ColouredNoiseParams(probability=1.0, snr=[0.0, 0.0], colours=[colour]), SCALE)
    assert bank is not None
    frames = bank.draw(3, 80)
    assert frames.shape == (3, 80, 64)
    assert frames.isfinite().all()
    assert not torch.equal(frames[0], frames[1])


def test_banks_are_opened_only_where_they_are_needed(folder: Path) -> None:
    on, off = (BackgroundParams(probability=p, snr=[0.0, 9.0], folder=folder) for p in (0.5, 0.0))
    assert open_background(off, SCALE) is None
    assert open_background(on, None) is None
    bank = open_background(on, SCALE)
    assert bank is not None
    assert bank.digest == find_sounds(folder).digest
    plain = AugmentationParams.model_validate(PLAIN)
    assert open_coloured_noise(plain.coloured_noise, SCALE) is None
    clips, state = torch.randn(2, 5, 64), torch.get_rng_state()
    assert add_sounds(clips, None, bank, 0.0, [0.0, 9.0], SCALE) is clips
    assert torch.equal(torch.get_rng_state(), state)


def test_models_that_read_no_powers_are_told(caplog: pytest.LogCaptureFixture) -> None:
    changes = {name: PLAIN[name] | {"probability": 0.5} for name in ("gain", "sum_clips", "freq_mixstyle")}
    params = TrainParams.model_validate(SETTINGS | {"augmentation": PLAIN | changes})
    with caplog.at_level(logging.WARNING):
        task = Classification(params, loss_of("one"), 1, None, NoiseBanks())
    told = {record.getMessage().partition(":")[0] for record in caplog.records}
    assert told == {"train.augmentation.gain", "train.augmentation.sum_clips"}
    batch = Batch(torch.randn(4, 30, 6), None, torch.arange(4))
    loss, _ = task.loss(
        build(MODEL, {"n_mels": 6}, 3), build(MODEL, {"n_mels": 6}, 3).classify, batch, torch.eye(3)[[0, 1, 2, 0]]
    )
    assert loss.isfinite()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "gain",
            {"range": [6.0, -6.0]},
            r"gain\.range: expected the lower end first, as \[-6\.0, 6\.0\], found \[6\.0, -6\.0\]",
        ),
        ("speed", {"range": [0.0, 1.0]}, r"speed\.range\.0: .*greater than 0, found 0\.0"),
        (
            "sum_clips",
            {"num_clips": [3, 2]},
            r"sum_clips: num_clips: expected the smaller number first, as \[2, 3\], found \[3, 2\]",
        ),
        ("sum_clips", {"num_clips": [1, 2]}, r"sum_clips\.num_clips\.0: .*greater than or equal to 2, found 1"),
        ("background", {"probability": 0.5}, r"background: folder: expected a folder of sounds with probability 0\.5"),
        ("coloured_noise", {"colours": ["grey"]}, r"colours\.0: .*'white'.*found 'grey'"),
        ("erasing", {"area": [0.1, 2.0]}, r"erasing\.area\.1: .*less than or equal to 1, found 2\.0"),
        ("erasing", {"area": [0.1]}, r"erasing\.area: .*at least 2 items"),
    ],
)
def test_bad_settings_are_named(key: str, value: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        validate_params(AugmentationParams, PLAIN | {key: PLAIN[key] | value}, "train.augmentation")


def test_a_clip_is_in_one_mixture_at_most() -> None:
    both = {name: PLAIN[name] | {"probability": 0.6} for name in ("sum_clips", "concatenate_clips")}
    with pytest.raises(ParamsError, match=r"expected at most 1, .*found 1\.2"):
        validate_params(AugmentationParams, PLAIN | both, "train.augmentation")
