"""A trained model in other programs: the libraries that own a format read it and give its logits."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from conftest import REPOSITORY
from networks import changed, network, params_of
from test_ast import LEARNED, SMALL, STEM
from test_checkpoint_formats import (
    N_MELS,
    Oracle,
    hub_weights,
    make_deit,
    make_huggingface,
    original_weights,
    shake,
)
from typer.testing import CliRunner

from pipeline.artifacts.clips import Link
from pipeline.artifacts.model import open_model, write_model
from pipeline.errors import SonolexError
from pipeline.evaluation.network_prediction import build_network
from pipeline.models.network import Network, open_pretrained_weights
from pipeline.params import read_params
from pipeline.training.batches import normalise
from tools import export, export_checkpoint
from tools.sonolex import app

BASE = read_params(REPOSITORY / "recipes" / "base.yaml")["models"]
CLASSES = ["dog", "rain", "sea waves"]
NORMALISATION = {"kind": "corpus", "std_scale": 2.0, "mean": -4.5, "std": 3.0}
FRONT_END = {"front_end": "kaldi", "sample_rate": 16000, "win_length": 400, "hop_length": 160, "n_mels": 128}
TOKENS = network("tokens", encoder__depth=1)
STEMS: dict[str, dict[str, Any]] = {
    "convolution": {"kind": "convolution", "channels": [8, 16], "strides": [[4, 4], [2, 2]], "kernel": 5},
    "patches": STEM | {"positions": {"kind": "sinusoidal"}},
    "masked table": STEM,
    "padded table": STEM | {"positions": LEARNED | {"shorter": "pad"}},
}


def make_model(path: Path, section: dict[str, Any], link: Link = "softmax", **normalisation: Any) -> Any:
    """Write a model folder of random weights, trained on one label a clip, and return the network."""
    params = params_of(section)
    metadata: dict[str, Any] = {"n_mels": N_MELS, "log_floor": -16.0, "normalisation": NORMALISATION | normalisation}
    if params.reads == "tokens":
        none = {"kind": "none", "std_scale": 1.0, "mean": 0.0, "std": 1.0}
        metadata = {"vocabulary_size": 20, "num_codebooks": 2, "bands": [[0, 12], [12, 24]], "normalisation": none}
    checkpoint = open_pretrained_weights(params, FRONT_END)
    if checkpoint is not None:
        metadata |= {"pretrained": checkpoint.metadata}
    torch.manual_seed(0)
    network = shake(Network(params, metadata, len(CLASSES)))  # type: ignore[arg-type]
    if checkpoint is not None:
        network.load_weights(params, checkpoint)
    weights = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    write_model(path, weights, {
        "model": "m", "params": params.model_dump(mode="json"), "classes": CLASSES, "label_kind": "one",
        "link": link, "reads": params.reads,
        "input": metadata, "source": "", "front_end": FRONT_END, "fold": "1", "seed": 0,
        "num_parameters": 1, "clips_seen": 1,
    })  # fmt: skip
    return network.eval()


def raw_frames(num_frames: int = 64, clips: int = 2) -> np.ndarray:
    """Return frames (clip, frame, mel) in the front end's units."""
    return (np.random.default_rng(0).standard_normal((clips, num_frames, N_MELS)) * 3 - 4.5).astype(np.float32)


@torch.no_grad()
def logits_of(network: Any, frames: np.ndarray, **normalisation: Any) -> np.ndarray:
    metadata = NORMALISATION | normalisation
    inputs = normalise(torch.from_numpy(frames), None, {}, metadata)
    logits: np.ndarray = network(inputs, None).numpy()
    return logits


def test_transformers_loads_an_export_and_gives_its_logits(tmp_path: Path) -> None:
    network = make_model(tmp_path / "m", changed(SMALL, {"input.std_scale": 1.0}), std_scale=1.0)
    exported = export.run(tmp_path / "m", "huggingface", tmp_path / "out")
    theirs, loading = transformers.ASTForAudioClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    extractor = transformers.ASTFeatureExtractor.from_pretrained(tmp_path / "out")
    frames = raw_frames()
    with torch.no_grad():
        found = theirs.eval()(torch.from_numpy(extractor.normalize(frames))).logits.numpy()
    np.testing.assert_allclose(found, logits_of(network, frames, std_scale=1.0), atol=1e-4)
    assert theirs.config.id2label == dict(enumerate(CLASSES))
    assert (extractor.mean, extractor.std, extractor.max_length) == (-4.5, 1.5, 64)
    assert exported.difference < 1e-4
    assert any("epsilons [1e-06, 1e-05] here and [1e-06, 1e-06] there" in remark for remark in exported.remarks)


@pytest.mark.parametrize("link", ["softmax", "sigmoid"])
def test_transformers_takes_the_probabilities_that_the_model_was_trained_for(link: Link, tmp_path: Path) -> None:
    make_model(tmp_path / "m", SMALL, link)  # one label a clip in both: `bce` trains a sigmoid for each class
    export.run(tmp_path / "m", "huggingface", tmp_path / "out")
    theirs = transformers.ASTForAudioClassification.from_pretrained(tmp_path / "out")
    extractor = transformers.ASTFeatureExtractor.from_pretrained(tmp_path / "out")
    classify = transformers.AudioClassificationPipeline(model=theirs, feature_extractor=extractor)
    logits = torch.tensor([[2.0, 1.0, -3.0]])
    found = {row["label"]: row["score"] for row in classify.postprocess(SimpleNamespace(logits=logits), top_k=3)}
    expected = logits[0].softmax(-1) if link == "softmax" else logits[0].sigmoid()
    assert found == pytest.approx(dict(zip(CLASSES, expected.tolist(), strict=True)))


def test_an_export_of_what_came_from_hugging_face_is_what_came(tmp_path: Path) -> None:
    make_huggingface(tmp_path / "hf")
    section = SMALL | {"pretrained": hub_weights(tmp_path / "hf")}
    # Three classes where there were seven: the head is new, all else must come back.
    make_model(tmp_path / "m", section)
    exported = export.run(tmp_path / "m", "huggingface", tmp_path / "out")
    assert exported == (0.0, [])
    before, after = (
        transformers.ASTForAudioClassification.from_pretrained(tmp_path / name).state_dict() for name in ("hf", "out")
    )
    same = [name for name in before if name.startswith("audio_spectrogram_transformer.")]
    assert all(torch.equal(before[name], after[name]) for name in same)


def test_the_authors_model_reads_an_export(tmp_path: Path) -> None:
    network = make_model(tmp_path / "m", SMALL)
    exported = export.run(tmp_path / "m", "original", tmp_path / "out.pth")
    weights = torch.load(tmp_path / "out.pth", weights_only=True)
    assert len(weights) == 159 - 10 * 12
    oracle = Oracle(make_deit(), 12 * 5, len(CLASSES)).eval()
    oracle.load_state_dict({name.removeprefix("module."): tensor for name, tensor in weights.items()})  # strictly
    frames = raw_frames()
    with torch.no_grad():
        found = oracle(torch.from_numpy((frames + 4.5) / (2 * 3.0)))
    np.testing.assert_allclose(found, logits_of(network, frames), atol=1e-4)
    assert exported.remarks == ["the file does not include the normalisation of frames: (x - -4.5) / (2 * 3.0)"]


def test_a_model_goes_out_and_comes_in_again(tmp_path: Path) -> None:
    network = make_model(tmp_path / "m", SMALL)
    export.run(tmp_path / "m", "original", tmp_path / "out.pth")
    again = make_model(tmp_path / "n", SMALL | {"pretrained": original_weights(tmp_path / "out.pth")})
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.parametrize(
    "stem", ["patches", *(pytest.param(s, marks=pytest.mark.slow) for s in STEMS if s != "patches")]
)
def test_onnx_gives_the_logits_of_other_batches_and_lengths(tmp_path: Path, stem: str) -> None:
    section = SMALL | {"stem": STEMS[stem]}
    if stem == "convolution":
        section |= {"head": {"kind": "pooled", "pooling": "mean"}}
    network = make_model(tmp_path / "m", section)
    exported = export.run(tmp_path / "m", "onnx", tmp_path / "m.onnx", start="frames")
    assert exported.difference < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    for clips, num_frames in ((1, 64), (4, 64), (2, 40), (3, 17)):
        frames = raw_frames(num_frames, clips)
        (found,) = session.run(None, {"frames": frames})
        np.testing.assert_allclose(found, logits_of(network, frames), atol=1e-4)
    assert session.get_modelmeta().custom_metadata_map["classes"] == '["dog", "rain", "sea waves"]'


@pytest.mark.slow
def test_onnx_normalises_by_the_clip_and_reads_tokens(tmp_path: Path) -> None:
    network = make_model(tmp_path / "m", changed(SMALL, {"input.normalisation": "clip"}), kind="clip")
    export.run(tmp_path / "m", "onnx", tmp_path / "m.onnx", start="frames")
    frames = raw_frames(60)
    (found,) = onnxruntime.InferenceSession(tmp_path / "m.onnx").run(None, {"frames": frames})
    np.testing.assert_allclose(found, logits_of(network, frames, kind="clip"), atol=1e-4)
    make_model(tmp_path / "t", TOKENS)
    assert export.run(tmp_path / "t", "onnx", tmp_path / "t.onnx", start="tokens").difference < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "cnn", "token_cnn", "bag_of_embeddings", "bert", "conformer"])
def test_onnx_takes_the_models_of_the_base(tmp_path: Path, name: str) -> None:
    make_model(tmp_path / "m", BASE[name])
    start = params_of(BASE[name]).reads
    assert export.run(tmp_path / "m", "onnx", tmp_path / "m.onnx", start=start).difference < 1e-4


@pytest.mark.parametrize("name", ["lstm", "frames_lstm"])
def test_onnx_refuses_an_lstm(tmp_path: Path, name: str) -> None:
    make_model(tmp_path / "m", changed(BASE[name], {"encoder.width": 4}))
    with pytest.raises(SonolexError, match=r"without a recurrent network, found .* encoder lstm, .* a transformer"):
        export.run(tmp_path / "m", "onnx", tmp_path / "m.onnx", start="frames")
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            SMALL | {"stem": STEMS["convolution"]},
            "expected a network that reads frames, with square patches, .* stem convolution, encoder trans",
        ),
        (TOKENS, "found the kind network with input tokens, stem linear"),
        (
            changed(SMALL, {"input.normalisation": "clip"}),
            r"input\.normalisation: expected one mean and std for all clips, found clip",
        ),
    ],
)
def test_what_a_format_cannot_hold_is_refused(tmp_path: Path, section: dict[str, Any], message: str) -> None:
    make_model(tmp_path / "m", section)
    with pytest.raises(SonolexError, match=message):
        export.run(tmp_path / "m", "original", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_export_that_gives_other_logits_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model(tmp_path / "m", SMALL)
    monkeypatch.setattr(export_checkpoint, "TOLERANCE", -1.0)
    with pytest.raises(SonolexError, match=r"expected the logits of the model within .* do not use it"):
        export.run(tmp_path / "m", "original", tmp_path / "out")


def test_the_program(tmp_path: Path) -> None:
    make_model(tmp_path / "m", SMALL)
    runner = CliRunner()
    result = runner.invoke(app, ["export", str(tmp_path / "m"), "--to", "original", "--out", str(tmp_path / "x.pth")])
    assert result.exit_code == 0
    assert "x.pth: logits differ from the model's by at most 0" in result.output
    result = runner.invoke(app, ["export", str(tmp_path / "m"), "--to", "original", "--out", str(tmp_path / "x.pth")])
    assert result.exit_code == 1
    result = runner.invoke(app, ["export", str(tmp_path / "m"), "--to", "pytorch", "--out", str(tmp_path / "y.pth")])
    assert result.exit_code == 1
    assert build_network(open_model(tmp_path / "m")) is not None
