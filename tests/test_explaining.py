"""`sonolex predict --explain`: pictures of what models of frames look at in files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import make_waveform
from matplotlib.image import imread
from networks import build, network, params_of
from typer.testing import CliRunner

from pipeline.artifacts.model import open_model, write_model
from pipeline.inference.classifier import Classifier, Member
from pipeline.inference.explaining import explain_file
from pipeline.spectrogram.kaldi import KaldiFrontEnd, KaldiParams
from tools import predict
from tools.sonolex import app

CLASSES = ["a", "b", "c"]
N_MELS = 24


def classifier_of(folder: Path, *encoders: str) -> Classifier:
    """Return untrained networks of these encoders as one classifier."""
    settings = {
        "sample_rate": 16000,
        "win_length": 400,
        "hop_length": 160,
        "n_fft": 512,
        "f_min": 20.0,
        "f_max": 8000.0,
    }
    front_end = KaldiFrontEnd(KaldiParams(kind="kaldi", n_mels=N_MELS, pre_emphasis=0.97, **settings))
    about: dict[str, Any] = {**front_end.metadata, "dtype": "float32", "scale": 1.0, "offset": 0.0}
    normalisation = {"kind": "corpus", "std_scale": 1.0, "mean": -8.0, "std": 4.0}
    members = []
    for encoder in encoders:
        section = network("frames", "identity" if encoder == "cnn" else "linear", encoder)
        weights = build(section, {"n_mels": N_MELS}, len(CLASSES)).state_dict()
        metadata = {"model": encoder, "params": params_of(section).model_dump(mode="json"), "classes": CLASSES}
        metadata |= {"reads": "frames", "input": {"n_mels": N_MELS, "normalisation": normalisation}, "source": ""}
        metadata |= {"label_kind": "one", "front_end": about, "fold": "1", "seed": 0, "num_parameters": 1}
        path = folder / encoder
        write_model(path, {name: array.numpy() for name, array in weights.items()}, metadata | {"clips_seen": 1})
        members.append(Member(open_model(path), None))
    return Classifier(tuple(members), np.full(len(CLASSES), 0.5))


@pytest.fixture
def sounds(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{name}.wav" for name in ("one", "two")]
    for path in paths:
        soundfile.write(path, make_waveform("tone", 0.5), 16000)
    return paths


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["predict", "any", *map(str, arguments)])


def test_pictures_are_drawn_without_a_screen(
    sounds: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setattr(predict, "open_classifier", lambda *_: classifier_of(tmp_path / "models", "cnn"))
    assert call(sounds[0], "--explain", tmp_path / "picture.png").exit_code == 0
    assert imread(tmp_path / "picture.png").shape[1] > 1000
    assert call(*sounds, "--explain", tmp_path / "folder").exit_code == 0
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["one.png", "two.png"]


def test_several_models_show_the_mean_of_their_maps(sounds: list[Path], tmp_path: Path) -> None:
    both = classifier_of(tmp_path, "cnn", "transformer")
    found = explain_file(both, sounds[0], 1)
    alone = [explain_file(Classifier((member,), both.thresholds), sounds[0], 1) for member in both.members]
    np.testing.assert_allclose(found.values, (alone[0].values + alone[1].values) / 2)
    assert found.values.shape == found.frames.shape
    assert found.label.startswith("Grad-CAM, b")
    assert "attention" in found.label


@pytest.mark.parametrize(
    ("encoder", "options", "message"),
    [
        ("lstm", ["--explain", "a.png"], "--explain: expected a network that reads frames, with attention or a convol"),
        ("cnn", ["--explain", "a.svg"], "--explain: expected a name that ends in .png, or a folder, found a.svg"),
        ("cnn", ["--explain", "a.png", "--window", "1"], "--explain: expected files that are predicted as a whole"),
    ],
)
def test_what_cannot_be_explained_is_named(
    encoder: str, options: list[str], message: str, sounds: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "open_classifier", lambda *_: classifier_of(tmp_path / "models", encoder))
    result = call(sounds[0], *options)
    assert result.exit_code == 1
    assert message in result.stderr


def test_a_picture_is_of_one_file(sounds: list[Path]) -> None:
    message = "--explain a.png: expected one file to predict, found 2; name a folder"
    assert message in call(*sounds, "--explain", "a.png").stderr
