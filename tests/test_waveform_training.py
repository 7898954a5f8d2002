"""Waveform encoders trained from the waveform on: states as of the frozen ones, gradients, padding, and a whole run."""

import contextlib
import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_waveform
from experiments import run_experiment
from networks import params_of
from torch import Tensor
from typer.testing import CliRunner

from pipeline.artifacts.model import open_model
from pipeline.check_params import load_experiment
from pipeline.errors import ParamsError, SonolexError
from pipeline.models.network import Network, open_pretrained_weights
from pipeline.models.weight_groups import depths, weight_groups
from pipeline.params import validate_params
from pipeline.spectrogram.encoder_files import MODEL_TYPES
from pipeline.spectrogram.log_mel import count_bands, log_mel_part
from pipeline.spectrogram.registry import FrontEndParams, build_front_end
from pipeline.spectrogram.settings import SpectrogramParams
from pipeline.spectrogram.storing import restore, store
from pipeline.spectrogram.torch_front_end import front_end_module
from pipeline.training.lora import LoraParams, add_adapters
from tools.compose import compose, dump
from tools.sonolex import app

pytest.importorskip("transformers", reason="waveform encoders need the package transformers")

from test_waveform_encoder import HOP, _fresh, front_end_of, save_encoder  # noqa: F401 - after the package; a fixture

REPOSITORY = Path(__file__).parents[1]
WAVEFORM = {"kind": "waveform", "sample_rate": 16000, "hop_length": HOP}
STABLE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}
FAMILIES = [(kind, {}) for kind in MODEL_TYPES] + [("wav2vec2", STABLE), ("wavlm", STABLE)]


def section(folder: Path, **encoder: Any) -> dict[str, Any]:
    return {
        "kind": "network",
        "input": {"kind": "frames", "normalisation": "none", "std_scale": 1.0},
        "stem": {"kind": "identity"},
        "encoder": {"kind": "waveform_encoder", "layer": None, "freeze_convolutions": False, "dropout": 0.0} | encoder,
        "head": {"kind": "pooled", "pooling": "mean"},
        "window": None,
        "pretrained": {"kind": "waveform_encoder", "source": str(folder), "digest": None},
    }


def fine_tuned(folder: Path, **encoder: Any) -> Any:
    """Return a network of three classes with the weights of a folder."""
    params = params_of(section(folder, **encoder))
    checkpoint = open_pretrained_weights(
        params, build_front_end(validate_params(FrontEndParams, WAVEFORM, "x")).metadata
    )
    assert checkpoint is not None
    torch.manual_seed(0)
    network = Network(params, {"n_mels": HOP, "log_floor": 0.0, "pretrained": checkpoint.metadata}, 3)
    network.load_weights(params, checkpoint)
    return network


def batch() -> tuple[list[Tensor], Tensor, Tensor]:
    """Return clips (frame, sample), the last too short for a state, and the padded batch of them with its mask."""
    front_end = build_front_end(validate_params(FrontEndParams, WAVEFORM, "x"))
    waveforms = [0.1**i * make_waveform("noise", seconds, seed=i) for i, seconds in enumerate((0.3, 0.2, 0.01))]
    clips = [torch.from_numpy(front_end.log_mel(waveform.astype(np.float32))) for waveform in waveforms]
    mask = torch.arange(len(clips[0])) < torch.tensor([len(clip) for clip in clips])[:, None]
    padded = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    return clips, padded, mask


@pytest.mark.parametrize(("model_type", "sizes"), FAMILIES)
@pytest.mark.parametrize("normalises", [True, False])
def test_states_are_those_of_the_frozen_encoder_and_padding_changes_nothing(
    model_type: str, sizes: dict[str, Any], normalises: bool, tmp_path: Path
) -> None:
    stored = save_encoder(tmp_path / "encoder", model_type, normalises=normalises, **sizes)
    network = fine_tuned(tmp_path / "encoder", layer=2).eval()
    clips, padded, mask = batch()
    tolerance = 1e-4 if "data2vec" in model_type else 1e-5
    with torch.no_grad():
        states, real = network.encoder(padded, mask)
        for i, clip in enumerate(clips[:2]):
            expected = front_end_of(tmp_path / "encoder", 2).log_mel(clip.flatten().numpy())
            assert int(real[i].sum()) == len(expected)
            np.testing.assert_allclose(states[i, : len(expected)], expected, atol=tolerance)
        together = network(padded, mask)
        torch.testing.assert_close(
            together, torch.cat([network(clip[None], None) for clip in clips]), atol=tolerance, rtol=0
        )
        torch.testing.assert_close(network(padded.masked_fill(~mask[:, :, None], 9.0), mask), together, atol=0, rtol=0)
        whole = fine_tuned(tmp_path / "encoder").eval()
        samples = clips[0].flatten()[None]
        if normalises:
            samples = (samples - samples.mean()) / (samples.var(correction=0) + 1e-7).sqrt()
        last = whole.encoder(clips[0][None], None)[0]
        torch.testing.assert_close(last, stored(samples).last_hidden_state, atol=1e-4, rtol=0)


@pytest.mark.parametrize("model_type", ["wav2vec2", "hubert", "wavlm", "data2vec-audio"])
def test_gradients_reach_every_weight_that_is_not_frozen(model_type: str, tmp_path: Path) -> None:
    save_encoder(tmp_path / "encoder", model_type)
    _, padded, mask = batch()
    found = {}
    for checkpointed in (False, True):
        network = fine_tuned(tmp_path / "encoder").train()
        network.set_activation_checkpointing(checkpointed)
        network(padded, mask).square().sum().backward()
        found[checkpointed] = {name: weight.grad for name, weight in network.named_parameters()}
        # Keys have a bias that the softmax cancels, but for rounding.
        assert not [name for name, grad in found[checkpointed].items() if grad is None or not grad.any()]
    for name, gradient in found[True].items():
        torch.testing.assert_close(gradient, found[False][name])
    frozen = fine_tuned(tmp_path / "encoder", freeze_convolutions=True).train()
    frozen(padded, mask).sum().backward()
    left = {name for name, weight in frozen.named_parameters() if weight.grad is None}
    assert left == {name for name, _ in frozen.named_parameters() if name.startswith("encoder.convolutions.")}
    assert left


def test_dropout_is_the_configs_unless_it_is_set(tmp_path: Path) -> None:
    save_encoder(tmp_path / "encoder", hidden_dropout=0.3, layerdrop=0.5, mask_time_prob=0.5)
    own, none = (fine_tuned(tmp_path / "encoder", dropout=dropout).train() for dropout in (None, 0.0))
    _, padded, mask = batch()
    assert not torch.equal(own(padded, mask), own(padded, mask))
    assert torch.equal(none(padded, mask), none.eval()(padded, mask))  # no layer is dropped, no state masked


def test_groups_are_the_parts_of_the_encoder_and_its_blocks(tmp_path: Path) -> None:
    save_encoder(tmp_path / "encoder")
    network = fine_tuned(tmp_path / "encoder")
    groups = weight_groups(network)
    assert {"encoder.convolutions", "encoder.projection", "encoder.transformer.layers.0"} <= set(groups)
    deep = depths(network)
    blocks = [deep[f"encoder.transformer.layers.{i}.attention.k_proj.weight"] for i in range(3)]
    assert blocks == [3, 2, 1]
    assert deep["encoder.convolutions.conv_layers.0.conv.weight"] > 3


def test_adapters_are_refused_where_they_would_have_no_effect(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="needs peft, an optional package: pip install peft")
    params = LoraParams(rank=2, alpha=4, dropout=0.0, targets=["q_proj", "v_proj"])
    for model_type in ("hubert", "wavlm"):
        save_encoder(tmp_path / model_type, model_type)
    network = fine_tuned(tmp_path / "hubert")
    add_adapters(network, params)
    _, padded, mask = batch()
    network.train()(padded, mask).sum().backward()
    assert all(w.grad is not None for name, w in network.named_parameters() if "lora_" in name)
    with pytest.raises(ParamsError, match=r"found q_proj; it has: projection, gru_rel_pos_linear, intermediate_dense"):
        add_adapters(fine_tuned(tmp_path / "wavlm"), params)


def test_frames_are_samples_and_16_bits_keep_those_of_a_file() -> None:
    front_end = build_front_end(validate_params(FrontEndParams, WAVEFORM, "x"))
    waveform = np.round(32768 * make_waveform("noise", 0.1)[: 4 * HOP + 7]).astype(np.float32) / 32768
    frames = front_end.log_mel(waveform)
    assert frames.shape == (front_end.num_frames(len(waveform)), HOP) == (4, HOP)
    assert np.array_equal(frames.ravel(), waveform[: 4 * HOP])
    assert front_end.log_mel(np.stack([waveform, waveform])).shape == (2, 4, HOP)
    metadata: Any = {**front_end.metadata, "dtype": "int16", "scale": 1 / 32768, "offset": 0.0}
    stored, clipped = store(frames, metadata)
    assert (stored.dtype, clipped) == (np.int16, 0)
    assert np.array_equal(restore(stored, metadata), frames)
    assert store(np.full((1, HOP), 1.5, np.float32), metadata)[1] == HOP
    exported = front_end_module(metadata)(torch.from_numpy(waveform)[None])[0]
    assert np.array_equal(exported, frames)


def test_pages_draw_the_spectrum_of_samples() -> None:
    front_end = build_front_end(validate_params(FrontEndParams, WAVEFORM, "x"))
    tone = np.sin(2 * np.pi * 2000 * np.arange(1600) / 16000).astype(np.float32)
    levels = log_mel_part(front_end.log_mel(tone), front_end.metadata)
    assert levels.shape == (10, count_bands(front_end.metadata)) == (10, HOP // 2 + 1)
    assert (levels.argmax(1) == 2000 * HOP // 16000).all()


# a whole run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an experiment that has trained a tiny encoder, which is gone since."""
    folder = tmp_path_factory.mktemp("waveform")
    save_encoder(folder / "encoder", "hubert")
    settings = [*small(folder / "encoder"), "train.epochs=12", "train.learning_rate=3e-3", "train.rates.head=1.0"]
    settings += ["train.augmentation.mixup_probability=0.0", "models.waveform.encoder.dropout=0.0"]
    run_experiment(folder / "work", settings, "esc50+waveform_encoder", small=[])
    shutil.rmtree(folder / "encoder")
    return folder / "work"


def small(source: Path) -> list[str]:
    return [
        'experiment.folds=["1"]',
        f"spectrogram.front_end.hop_length={HOP}",
        f"models.waveform.pretrained.source={source}",
        "train.batch_size=4",
        "train.precision=float32",
        "execution.workers=1",
    ]


@pytest.mark.slow
def test_training_lowers_the_loss_and_keeps_the_convolutions(finished: Path) -> None:
    with (finished / "results/train/waveform/1/0/epochs.csv").open(newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert losses[-1] < 0.7 * losses[0]
    model = open_model(finished / "models/waveform/1/0")
    torch.manual_seed(0)
    stored = save_encoder(finished / "again", "hubert").state_dict()
    kept = "feature_extractor.conv_layers.0.conv.weight"
    assert np.array_equal(model.weights["encoder.convolutions.conv_layers.0.conv.weight"], stored[kept])
    moved = "layers.0.attention.k_proj.weight"
    assert not np.array_equal(model.weights[f"encoder.transformer.{moved}"], stored[f"encoder.{moved}"])
    assert model.metadata["input"]["pretrained"]["waveform_encoder"]["config"]["model_type"] == "hubert"


@pytest.mark.slow
def test_prediction_embedding_and_another_start_need_no_file_of_the_encoder(finished: Path) -> None:
    with contextlib.chdir(finished):
        for command in (
            ["bundle", "waveform", "--out", "bundle"],
            ["predict", "bundle", "corpus/audio", "--out", "predictions.csv"],
            ["embed", "bundle", "corpus/audio", "--out", "vectors.parquet"],
        ):
            result = CliRunner().invoke(app, command)
            assert result.exit_code == 0, result.output
        with Path("predictions.csv").open(newline="") as file:
            assert len(list(csv.DictReader(file))) == 12
        own = section(Path("bundle")) | {
            "pretrained": {"kind": "sonolex", "source": "bundle", "digest": None, "classes": None}
        }
        checkpoint = open_pretrained_weights(
            params_of(own), open_model(Path("models/waveform/1/0")).metadata["front_end"]
        )
        assert checkpoint is not None
        network = Network(params_of(own), {"n_mels": HOP, "log_floor": 0.0, "pretrained": checkpoint.metadata}, 3)
        network.load_weights(params_of(own), checkpoint)


# bad input


def write_params(folder: Path, *settings: str) -> Path:
    overrides = [f"corpus.root={folder}", *small(folder / "encoder"), *settings]
    document, _ = compose("esc50+waveform_encoder", overrides, REPOSITORY / "recipes")
    (folder / "params.yaml").write_text(dump(document))
    return folder / "params.yaml"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["spectrogram.front_end={kind: mel}", "spectrogram.dtype=float32"],
            r"front_end.kind mel: waveform cannot read its frames: encoder.kind waveform_encoder reads samples; set "
            r"spectrogram.front_end.kind to waveform",
        ),
        (
            ["models.waveform.encoder={kind: cnn}", "models.waveform.pretrained=null"],
            r"kind waveform: waveform cannot read its frames: they are samples, which encoder.kind waveform_encoder reads, "
            r"found cnn",
        ),
        (
            ["experiment.frame_models=[waveform, frame_statistics]"],
            r"frame_statistics cannot read its frames: they are sampl",
        ),
        (
            ["experiment.vocabularies=[kmeans]"],
            r"expected no vocabularies over frames of samples, found .*kmeans; empty it",
        ),
        (
            ["models.waveform.pretrained=null"],
            r"pretrained: expected one of the kinds .*form is that of its weights, found null",
        ),
        (
            ["models.waveform.input.normalisation=clip"],
            r"input: expected kind frames with normalisation none .*found clip",
        ),
        (
            ["train.augmentation.band_masks.count=1"],
            r"augmentation.band_masks.count: expected 0 with .*kind waveform.*found 1",
        ),
        (["train.augmentation.mixup_domain=power"], r"mixup_domain: expected log, which adds the samples themselves"),
        (["spectrogram.dtype=uint8"], r"dtype: expected float16 or float32 with front_end.kind waveform"),
        (["duplicates.search=true"], r"duplicates.search: expected false with spectrogram.front_end.kind waveform"),
        (
            ["models.waveform.encoder={kind: cnn}"],
            r"weights of a waveform encoder need encoder.kind waveform_encoder, found cnn; recipes/waveform_encoder.yaml",
        ),
    ],
)
def test_what_does_not_go_with_samples_is_named(settings: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=message):
        load_experiment(write_params(tmp_path, *settings))


def test_16_bits_are_for_samples_alone() -> None:
    document, _ = compose("demo", ["spectrogram.dtype=int16"], REPOSITORY / "recipes")
    with pytest.raises(ParamsError, match=r"dtype: expected float16 or float32 .*found int16, which is for samples"):
        validate_params(SpectrogramParams, document["spectrogram"], "spectrogram")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], ""),
        (["train.freeze.stages=[{train: [head, encoder.transformer.layers.2]}]"], ""),
        (
            ["train.freeze.stages=[{train: [encoder.blocks]}]"],
            "found encoder.blocks; it has: encoder, encoder.convolutions",
        ),
        (
            ["spectrogram.front_end.sample_rate=8000"],
            "sample_rate: expected 16000, that of the encoder, found 8000; set",
        ),
        (["spectrogram.front_end.hop_length=320"], "hop_length: expected 160, that of the encoder, found 320; set"),
        (["models.waveform.encoder.layer=4"], "encoder.layer: expected 1 to 3, the blocks of the encoder, found 4"),
        (
            ["models.waveform.pretrained.source=gone"],
            "pretrained.source: expected 'gone' to be a folder here, or a repository",
        ),
        (["models.waveform.pretrained.digest=abc"], "expected abc, found"),
    ],
)
def test_check_opens_the_encoder(settings: list[str], message: str, tmp_path: Path) -> None:
    save_encoder(tmp_path / "encoder")
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/esc50.csv").write_text(
        "filename,fold,target,category,src_file\n1-a.wav,1,0,dog,a\n2-b.wav,2,0,dog,b\n"
    )
    path = write_params(tmp_path, *settings)
    result = CliRunner().invoke(app, ["check", "--params", str(path)])
    found = " ".join((result.output + str(result.exception or "")).split())
    assert (message in found) if message else result.exit_code == 0, found


def test_a_folder_of_another_model_is_refused(tmp_path: Path) -> None:
    save_encoder(tmp_path / "encoder")
    (tmp_path / "encoder/config.json").write_text('{"model_type": "whisper"}')
    with pytest.raises(
        SonolexError, match=r"pretrained.source: .*expected a waveform encoder .*found model_type: 'whisper'"
    ):
        fine_tuned(tmp_path / "encoder")
