"""Bundles: what they predict is what `evaluate` stored, for every kind of model, and damage is named with what to do."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from experiments import run_experiment, runs_of
from rich.console import Console

import sonolex
from pipeline.artifacts.clips import open_clips
from pipeline.artifacts.layout import Layout
from pipeline.artifacts.predictions import matrix, open_predictions
from pipeline.errors import SonolexError
from tools import bundle

FAST = (
    "experiment.frame_models=[ast, frame_statistics]",
    "experiment.token_models=[token_transformer, bag_of_tokens]",
    "experiment.vocabularies=[kmeans]",
    "experiment.ensembles=[{name: both, models: [ast, token_transformer-kmeans]}]",
    "spectrogram.dtype=float16",
)
CONSOLE = Console(quiet=True)


def make_bundle(experiment: Path, name: str, out: Path, folds: tuple[str, ...] = ()) -> Path:
    params = experiment / "params.yaml"
    bundle.run(name, out, folds=folds, params_path=params, layout=Layout(experiment), console=CONSOLE)
    return out


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_experiment(tmp_path_factory.mktemp("bundles") / "experiment", FAST)


@pytest.fixture(scope="module")
def token_bundle(experiment: Path) -> Path:
    return make_bundle(experiment, "token_transformer-kmeans", experiment.parent / "tokens")


@pytest.fixture
def damaged(token_bundle: Path, tmp_path: Path) -> Path:
    """Return a copy of a bundle, to be damaged."""
    return Path(shutil.copytree(token_bundle, tmp_path / "copy"))


def _audio(experiment: Path) -> dict[str, Path]:
    clips = open_clips(Layout(experiment).clips)
    sources = clips.list("source")
    return {clip: experiment / "corpus" / source for clip, source in zip(clips.list("clip_id"), sources, strict=True)}


def _compare(experiment: Path, tmp_path: Path) -> None:
    """Assert that each model's bundle predicts the logits that `evaluate` stored, without the experiment's folder."""
    audio = _audio(experiment)
    for run, predictions in runs_of(experiment):
        out = make_bundle(experiment, run.model.name, tmp_path / run.model.name)
        model, table = sonolex.load(out), open_predictions(predictions)
        logits = np.stack([model.predict(audio[clip]).logits for clip in table.list("clip_id")])
        np.testing.assert_allclose(logits, matrix(table, "logits"), atol=1e-5, err_msg=run.model.name)


def test_a_bundle_predicts_the_logits_of_evaluate(experiment: Path, tmp_path: Path) -> None:
    _compare(experiment, tmp_path)


def test_a_bundle_needs_nothing_of_the_project(
    token_bundle: Path, experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = Path(shutil.move(shutil.copytree(token_bundle, tmp_path / "a"), tmp_path / "b"))
    clip = shutil.copy(next(iter(_audio(experiment).values())), tmp_path / "clip.wav")
    expected = sonolex.load(token_bundle).predict(clip).logits
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    np.testing.assert_array_equal(sonolex.load(moved).predict(clip).logits, expected)


def test_an_ensemble_predicts_the_mean_of_its_members_probabilities(experiment: Path, tmp_path: Path) -> None:
    clip = next(iter(_audio(experiment).values()))
    names = ("ast", "token_transformer-kmeans")
    members = [sonolex.load(make_bundle(experiment, name, tmp_path / name)).predict(clip).scores for name in names]
    scores = sonolex.load(make_bundle(experiment, "both", tmp_path / "both")).predict(clip).scores
    np.testing.assert_allclose(scores, np.mean(members, axis=0), atol=1e-6)


def test_arrays_are_predicted_as_the_files_that_they_come_from(token_bundle: Path, experiment: Path) -> None:
    model, clip = sonolex.load(token_bundle), next(iter(_audio(experiment).values()))
    expected, rate = model.predict(clip).logits, soundfile.info(clip).samplerate
    floats, _ = soundfile.read(clip, dtype="float32")
    integers, _ = soundfile.read(clip, dtype="int16")
    for samples in (floats, integers, np.stack([floats, floats])):
        np.testing.assert_allclose(model.predict(samples, rate).logits, expected, atol=1e-5)
    assert model.predict(clip).top(1)[0].name in model.classes
    assert model.predict(clip).labels == [model.predict(clip).top(1)[0].name]
    assert model.tokens(clip).max() < 8
    assert model.tokens(clip).dtype == np.uint16


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        (np.zeros(16000, np.float32), 16000, r"silent: array: expected sound"),
        (np.ones(16000, np.float32), None, r"rate: expected the samples per second .* pass rate=16000"),
        (np.ones((16000, 2), np.float32), 16000, r"\(channel, sample\) .* found \(16000, 2\); transpose it"),
        (np.ones((2, 2, 2), np.float32), 16000, r"found \(2, 2, 2\)"),
        (np.ones(16000, np.uint8), 16000, r"signed integers, found uint8"),
        (np.full(16000, np.nan, np.float32), 16000, r"not_finite: array"),
        (np.linspace(0, 1, 10, dtype=np.float32), 16000, r"too_short: array"),
        ("none.wav", None, r"missing: none\.wav: expected a file"),
    ],
)
def test_sounds_that_cannot_be_used_are_named(
    token_bundle: Path, samples: np.ndarray | str, rate: int | None, message: str
) -> None:
    with pytest.raises(SonolexError, match=message):
        sonolex.load(token_bundle).predict(samples, rate)


def test_every_altered_or_missing_file_is_named(damaged: Path) -> None:
    for file in sorted(path for path in damaged.rglob("*") if path.is_file()):
        content = file.read_bytes()
        file.write_bytes(bytes([content[0] ^ 1]) + content[1:] if content else b"x")
        with pytest.raises(SonolexError, match=f"{re.escape(file.name)}.*(copy it again|not_json)"):
            sonolex.load(damaged)
        file.unlink()
        with pytest.raises(SonolexError, match=f"{re.escape(file.name)}.*(copy it again|`sonolex bundle` writes one)"):
            sonolex.load(damaged)
        file.write_bytes(content)
    sonolex.load(damaged)


def test_a_bundle_of_a_newer_version_is_refused(damaged: Path) -> None:
    card = json.loads((damaged / "bundle.json").read_text())
    (damaged / "bundle.json").write_text(json.dumps(card | {"format": 99}))
    with pytest.raises(SonolexError, match=r"bundle\.json: format: expected at most 1, found 99: a newer Sonolex"):
        sonolex.load(damaged)


@pytest.mark.parametrize("where", ["nowhere", "."])
def test_what_is_no_bundle_is_named(tmp_path: Path, where: str) -> None:
    with pytest.raises(SonolexError, match=r"expected a bundle, a folder with bundle\.json, found (nothing|a folder)"):
        sonolex.load(tmp_path / where)


def test_what_the_experiment_has_not_is_named(experiment: Path, tmp_path: Path) -> None:
    with pytest.raises(SonolexError, match=r"cnn: expected a model or an ensemble .*ast, .*both\)"):
        make_bundle(experiment, "cnn", tmp_path / "out")
    with pytest.raises(SonolexError, match=r"--folds: expected folds of the experiment \(1\) or all, found 7"):
        make_bundle(experiment, "ast", tmp_path / "out", ("7",))
    with pytest.raises(SonolexError, match=r"expected no file of this name, found one"):
        make_bundle(experiment, "ast", tmp_path)


@pytest.mark.slow
def test_every_kind_of_model_predicts_the_logits_of_evaluate(tmp_path: Path) -> None:
    settings = (
        "experiment.frame_models=[ast, frames_transformer, conformer, frames_lstm, mlp, cnn, frame_textures, "
        "frame_statistics, majority]",
        "experiment.token_models=[token_transformer, bert, lstm, token_cnn, bag_of_embeddings, token_textures, "
        "bag_of_tokens, ngram]",
        "experiment.vocabularies=[kmeans, bands]",
        "vocabularies.bands.num_tokens=8",
        "spectrogram.dtype=uint8",
    )
    _compare(run_experiment(tmp_path / "experiment", settings), tmp_path)
