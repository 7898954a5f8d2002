"""Graphs that start from the waveform give the pipeline's logits and tokens, in the programs that run them."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import make_waveform
from networks import network, params_of
from test_baselines import BAG, STATISTICS, one_hot
from test_kaldi import AST
from test_rebuilding import fit as fit_tokens
from test_textures import FRAMES as FRAME_TEXTURES
from test_textures import TOKENS as TOKEN_TEXTURES
from test_torch_front_end import FLOAT16, UINT8, frames_of, stored_as
from typer.testing import CliRunner

from pipeline.artifacts.model import open_model, write_model
from pipeline.artifacts.spectrogram import SpectrogramMetadata
from pipeline.artifacts.vocabulary import Vocabulary
from pipeline.errors import SonolexError
from pipeline.evaluation.averaging import average_logits
from pipeline.evaluation.network_prediction import build_network
from pipeline.inference.torch_module import sound_classifier
from pipeline.models.baselines.base import Baseline, Setting
from pipeline.models.network import Network
from pipeline.models.registry import BASELINES
from pipeline.spectrogram.decoding import decode
from pipeline.training.batches import normalise
from pipeline.vocabulary.assignment import assign
from tools import export, export_graph
from tools.sonolex import app

CLASSES = ["tone", "noise", "clicks"]
N_MELS = 24
STORED = stored_as(AST | {"n_mels": N_MELS}, FLOAT16)
NORMALISATION = {"kind": "corpus", "std_scale": 2.0, "mean": -6.0, "std": 4.0}
NONE = {"kind": "none", "std_scale": 1.0, "mean": 0.0, "std": 1.0}


def clips_of(seconds: float, count: int = 1) -> list[np.ndarray]:
    """Return `count` waveforms of each class, of one length."""
    return [
        make_waveform(kind, seconds, frequency=300.0 + 200 * take, seed=take)
        + make_waveform("noise", seconds, seed=9) / 9
        for kind in CLASSES
        for take in range(count)
    ]


def vocabulary_of(waveforms: list[np.ndarray], metadata: SpectrogramMetadata = STORED, **changes: Any) -> Vocabulary:
    """Return a vocabulary of the frames of some clips."""
    frames = np.concatenate([frames_of(metadata, waveform) for waveform in waveforms])
    return fit_tokens(frames, **({"num_tokens": 16} | changes))


def write(
    path: Path,
    params: Any,
    weights: dict[str, np.ndarray],
    vocabulary: Vocabulary | None = None,
    *,
    metadata: SpectrogramMetadata = STORED,
    epochs: dict[int, dict[str, np.ndarray]] | None = None,
    frame_rate: float | None = None,
    more: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model folder; `more` is metadata of its input that others do not have."""
    about: dict[str, Any] = {"n_mels": metadata["n_mels"], "log_floor": -16.0, "normalisation": NORMALISATION}
    if vocabulary is not None:
        about = {"vocabulary_size": vocabulary.num_tokens, "num_codebooks": vocabulary.num_codebooks}
        about |= {"bands": vocabulary.bands, "normalisation": NONE}
    if frame_rate is not None:
        about["frame_rate"] = frame_rate
    about |= more or {}
    write_model(path, weights, {
        "model": "m", "params": params.model_dump(mode="json"), "classes": CLASSES, "label_kind": "one",
        "reads": params.reads, "input": about, "source": vocabulary.digest() if vocabulary else "",
        "front_end": metadata, "fold": "1", "seed": 0, "num_parameters": 1, "clips_seen": 1,
    }, epochs)  # type: ignore[typeddict-item]  # fmt: skip
    return path


def weights_of(section: dict[str, Any], about: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Return random weights of a network."""
    torch.manual_seed(seed)
    built = Network(params_of(section), about, len(CLASSES), "softmax")  # type: ignore[arg-type]
    return {name: tensor.numpy() for name, tensor in built.state_dict().items()}


def network_logits(path: Path, clips: list[np.ndarray]) -> np.ndarray:
    """Return the logits of a network's folder for frames, or tokens, of clips of one length."""
    model = open_model(path)
    inputs = torch.from_numpy(np.stack(clips).astype(np.int64 if clips[0].dtype == np.uint16 else np.float32))
    if model.metadata["reads"] == "frames":
        inputs = normalise(inputs, None, {**STORED, "dtype": "float32"}, model.metadata["input"]["normalisation"])
    with torch.no_grad():
        logits: np.ndarray = build_network(model)(inputs, None).numpy()
    return logits


def shapes(values: list[Any]) -> dict[str, list[str | int]]:
    """Return name -> axes of a session's inputs or outputs."""
    return {value.name: value.shape for value in values}


def token_model(path: Path, **changes: Any) -> tuple[Path, Vocabulary]:
    """Write a small network of tokens, and return its folder and vocabulary."""
    vocabulary = vocabulary_of(clips_of(0.5, 2), **changes)
    section = network("tokens", "convolution", "transformer", encoder__depth=1)
    about = {"vocabulary_size": 16, "num_codebooks": vocabulary.num_codebooks, "bands": vocabulary.bands}
    return write(path, params_of(section), weights_of(section, about), vocabulary), vocabulary


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnx", "torch"])
@pytest.mark.parametrize(("fill", "pooling"), [("shift", "max"), ("repeat", "attention"), ("silence", "mean")])
def test_a_network_with_windows(tmp_path: Path, target: Any, fill: str, pooling: str) -> None:
    """The graph cuts clips of any length, from one window on, as the network does."""
    window = {"length": 0.5, "hop": 0.3, "fill": fill, "pooling": pooling}
    section = network("frames", "convolution", encoder__depth=1) | {"window": window}
    about = {"n_mels": N_MELS, "log_floor": -16.0, "normalisation": NORMALISATION, "frame_rate": 100.0}
    path = write(tmp_path / "m", params_of(section), weights_of(section, about), frame_rate=100.0)
    exported = export.run(path, target, tmp_path / "m.out")
    assert exported.difference < 1e-4


@pytest.mark.slow
def test_a_token_network_as_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, vocabulary = token_model(tmp_path / "m", kind="bands", bands=4, stack=2)
    monkeypatch.setattr(export, "open_vocabulary", lambda _: vocabulary)
    exported = export.run(path, "onnx", tmp_path / "m.onnx", vocabulary=tmp_path)
    assert exported.difference < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    assert shapes(session.get_inputs()) == {"waveform": ["batch", "samples"]}
    assert shapes(session.get_outputs()) == {"logits": ["batch", 3], "tokens": ["batch", 4, "tokens"]}
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == CLASSES
    assert json.loads(about["sample_rate"]) == 16000
    for seconds in (0.3, 1.01):
        clips = clips_of(seconds)
        tokens = assign(vocabulary, [frames_of(STORED, clip) for clip in clips])
        logits, found = session.run(None, {"waveform": np.stack(clips)})
        assert (found != np.stack(tokens)).mean() < 0.01
        same = (found == np.stack(tokens)).all(axis=(1, 2))
        assert same.any()
        np.testing.assert_allclose(logits[same], network_logits(path, tokens)[same], atol=1e-4)


@pytest.mark.slow
def test_a_token_network_by_torch_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, vocabulary = token_model(tmp_path / "m")
    monkeypatch.setattr(export, "open_vocabulary", lambda _: vocabulary)
    export.run(path, "torch", tmp_path / "m.pt2", vocabulary=tmp_path)
    module = torch.export.load(tmp_path / "m.pt2").module()
    clips = clips_of(0.77)
    logits, tokens = module(torch.from_numpy(np.stack(clips)))
    np.testing.assert_allclose(logits.detach(), network_logits(path, list(tokens.numpy().astype(np.uint16))), atol=1e-4)


@pytest.mark.parametrize("storage", [FLOAT16, UINT8], ids=["float16", "uint8"])
def test_frames_are_normalised_as_they_are_stored(tmp_path: Path, storage: dict[str, Any]) -> None:
    metadata, section = stored_as(AST | {"n_mels": N_MELS}, storage), network("frames", "linear", "transformer")
    about = {"n_mels": N_MELS, "log_floor": -16.0, "normalisation": NORMALISATION}
    path = write(tmp_path / "m", params_of(section), weights_of(section, about), metadata=metadata)
    clips = clips_of(0.5)
    with torch.no_grad():
        found = sound_classifier(open_model(path))(torch.from_numpy(np.stack(clips)))
    expected = network_logits(path, [frames_of(metadata, clip) for clip in clips])
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_kept_epochs_predict_as_an_ensemble(tmp_path: Path) -> None:
    section, about = network("frames"), {"n_mels": N_MELS, "log_floor": -16.0, "normalisation": NORMALISATION}
    epochs = {epoch: weights_of(section, about, epoch) for epoch in (1, 2)}
    path = write(tmp_path / "m", params_of(section), epochs[2], epochs=epochs)
    members = [write(tmp_path / str(epoch), params_of(section), epochs[epoch]) for epoch in epochs]
    frames = [frames_of(STORED, clip) for clip in clips_of(0.5)]
    with torch.no_grad():
        found = sound_classifier(open_model(path), start="frames")(torch.from_numpy(np.stack(frames)))
    np.testing.assert_allclose(
        found, average_logits([network_logits(m, frames) for m in members], "softmax"), atol=1e-5
    )


def test_the_vocabulary_is_found_in_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # this repository may have vocabularies of its own
    path, vocabulary = token_model(tmp_path / "models" / "m" / "1" / "0")
    other = replace(vocabulary, metadata=vocabulary.metadata | {"seed": 1})  # type: ignore[typeddict-item]
    (tmp_path / "params.yaml").touch()
    for name in ("one", "two"):
        (tmp_path / "data" / "vocabulary" / name / "1.zarr").mkdir(parents=True)
    found = {"one": other, "two": vocabulary}
    monkeypatch.setattr(export, "open_vocabulary", lambda place: found[place.parent.name])
    assert export.find_vocabulary(open_model(path), None) is vocabulary
    found["two"] = other
    with pytest.raises(
        SonolexError, match=r"expected the vocabulary of its training, .* found none; .*--vocabulary data/"
    ):
        export.run(path, "onnx", tmp_path / "m.onnx")
    with pytest.raises(SonolexError, match=r"expected the vocabulary of its training, .* of digest .*; pass the"):
        export.run(path, "onnx", tmp_path / "m.onnx", vocabulary=tmp_path / "data" / "vocabulary" / "one" / "1.zarr")


def test_what_no_graph_can_hold_is_refused_by_name(tmp_path: Path) -> None:
    section = network("frames", "convolution_1d", "lstm")
    about = {"n_mels": N_MELS, "log_floor": -16.0, "normalisation": NORMALISATION}
    path = write(tmp_path / "lstm", params_of(section), weights_of(section, about))
    with pytest.raises(SonolexError, match=r"without a recurrent network, found .* encoder lstm"):
        export.run(path, "torch", tmp_path / "m.pt2")
    with pytest.raises(
        SonolexError, match="expected a model of tokens to start from them, found one that reads frames"
    ):
        export.run(path, "onnx", tmp_path / "m.onnx", start="tokens")
    with pytest.raises(SonolexError, match="--int8: expected --to onnx, found torch"):
        export.run(path, "torch", tmp_path / "m.pt2", int8=True)
    ngram = BASELINES["ngram"].Params(kind="ngram", order=2)  # type: ignore[call-arg]
    path, vocabulary = write(tmp_path / "ngram", ngram, {}, vocabulary_of(clips_of(0.5))), None
    with pytest.raises(SonolexError, match=r"ngram: expected one of the kinds .* found ngram, which looks up"):
        sound_classifier(open_model(path), vocabulary, "tokens")


def test_a_graph_that_gives_other_logits_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "m", BASELINES["majority"].Params(kind="majority"), {"logits": np.zeros(3, np.float32)})  # type: ignore[call-arg]
    monkeypatch.setitem(export_graph.TOLERANCES, "frames", -1.0)
    with pytest.raises(SonolexError, match=r"expected the logits of the model within .* do not use it"):
        export.run(path, "torch", tmp_path / "m.pt2", start="frames")
    assert not (tmp_path / "m.pt2").exists()


def test_the_program_names_wrong_options(tmp_path: Path) -> None:
    path = write(tmp_path / "m", BASELINES["majority"].Params(kind="majority"), {"logits": np.zeros(3, np.float32)})  # type: ignore[call-arg]
    arguments = ["export", str(path), "--to", "torch", "--out", str(tmp_path / "m.pt2")]
    refused = CliRunner().invoke(app, [*arguments, "--input", "sound"])
    assert refused.exit_code == 1
    done = CliRunner().invoke(app, [*arguments, "--input", "frames"])
    assert done.exit_code == 0, done.output
    assert "note: reads clips of one length in a batch, of the shape (batch, frames, 24)" in done.output


def fit_classical(
    model: Baseline, waveforms: list[np.ndarray], classes: np.ndarray, metadata: SpectrogramMetadata, path: Path
) -> tuple[Path, Vocabulary | None]:
    """Fit a classical model on clips, and write its folder."""
    frames = [frames_of(metadata, waveform) for waveform in waveforms]
    vocabulary = vocabulary_of(waveforms, metadata, kind="bands", bands=4) if model.reads == "tokens" else None
    clips = assign(vocabulary, frames) if vocabulary else frames
    about: dict[str, Any] = {"vocabulary_size": 16, "num_codebooks": 4}
    weights = model.fit(clips, one_hot(classes), Setting(about, metadata, "one", 0, vocabulary))  # type: ignore[arg-type]
    return write(path, model.params, weights, vocabulary, metadata=metadata), vocabulary


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", [BAG, STATISTICS, FRAME_TEXTURES, TOKEN_TEXTURES], ids=lambda m: type(m).__name__ + m.reads
)
def test_classical_models_on_real_recordings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, esc10_root: Path, model: Baseline
) -> None:
    metadata = stored_as(AST | {"n_mels": 64}, FLOAT16)
    files = sorted((esc10_root / "audio").glob("*.ogg"))[::20]
    settings: dict[str, Any] = {"start": 0.0, "duration": 0.0, "sample_rate": 16000, "max_duration": 60.0}
    waveforms = [decode(file, **settings) for file in files]
    path, vocabulary = fit_classical(model, waveforms, np.arange(len(files)) % 3, metadata, tmp_path / "m")
    monkeypatch.setattr(export, "find_vocabulary", lambda *_: vocabulary)
    export.run(path, "onnx", tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    frames = [frames_of(metadata, waveform) for waveform in waveforms]
    expected = model.predict(open_model(path).weights, assign(vocabulary, frames) if vocabulary else frames)
    found = np.concatenate([session.run(["logits"], {"waveform": waveform[None]})[0] for waveform in waveforms])
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.slow
def test_eight_bits_leave_front_end_and_search_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, vocabulary = token_model(tmp_path / "m", kind="residual", codebooks=2)
    monkeypatch.setattr(export, "find_vocabulary", lambda *_: vocabulary)
    export.run(path, "onnx", tmp_path / "float.onnx")
    exported = export.run(path, "onnx", tmp_path / "int8.onnx", int8=True)
    assert 0 < exported.difference < 1
    waveforms = np.stack(clips_of(0.5))
    plain, quantised = (
        onnxruntime.InferenceSession(tmp_path / name).run(None, {"waveform": waveforms})
        for name in ("float.onnx", "int8.onnx")
    )
    np.testing.assert_array_equal(plain[1], quantised[1])
    assert (tmp_path / "int8.onnx").stat().st_size < (tmp_path / "float.onnx").stat().st_size
