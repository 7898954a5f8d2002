"""The front end of waveform encoders: frames are the hidden states that transformers itself computes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import make_waveform
from test_spectrogram_stage import _build

from pipeline.check_params import load_experiment
from pipeline.errors import ParamsError, SonolexError
from pipeline.params import validate_params
from pipeline.spectrogram import encoder_files, waveform_encoder
from pipeline.spectrogram.band_scale import tick_labels
from pipeline.spectrogram.reader import FrameReader
from pipeline.spectrogram.registry import FrontEndParams, build_front_end
from pipeline.spectrogram.torch_front_end import front_end_module
from tools.compose import compose, dump

transformers = pytest.importorskip("transformers", reason="waveform encoders need the package transformers")

SIZES: dict[str, Any] = {
    "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32,
    "conv_dim": (16, 16, 16), "conv_stride": (5, 8, 4), "conv_kernel": (10, 8, 4),
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
HOP, FIELD = 160, 10 + 5 * (7 + 8 * 3)


def save_encoder(
    folder: Path, model_type: str = "wav2vec2", *, normalises: bool = True, seed: int = 0, **sizes: Any
) -> Any:
    """Write a random encoder as save_pretrained does, and return it."""
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(model_type, **SIZES | sizes)
    model = transformers.AutoModel.from_config(config).eval()
    model.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=normalises).save_pretrained(folder)
    return model


def section_of(folder: Path, layer: int = 2, digest: str | None = None) -> dict[str, Any]:
    return {"kind": "waveform_encoder", "source": str(folder), "layer": layer, "digest": digest}


def front_end_of(folder: Path, layer: int = 2, digest: str | None = None) -> Any:
    return build_front_end(validate_params(FrontEndParams, section_of(folder, layer, digest), "front_end"))


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    encoder_files.open_encoder.cache_clear()
    waveform_encoder._load_model.cache_clear()


@pytest.mark.parametrize("layer", [0, 1, 3])
@pytest.mark.parametrize("model_type", encoder_files.MODEL_TYPES)
def test_frames_are_the_hidden_states_of_a_layer(model_type: str, layer: int, tmp_path: Path) -> None:
    model = save_encoder(tmp_path / "encoder", model_type)
    front_end = front_end_of(tmp_path / "encoder", layer)
    waveform = make_waveform("noise", 0.5)
    extract = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "encoder")
    values = extract(waveform, sampling_rate=16000, return_tensors="pt").input_values
    with torch.no_grad():
        expected = model(values, output_hidden_states=True).hidden_states[layer][0].numpy()
    found = front_end.log_mel(waveform)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.shape == (front_end.num_frames(len(waveform)), front_end.metadata["n_mels"])


@pytest.mark.parametrize("stable", [False, True])
def test_a_layer_of_a_norm_after_the_blocks_is_taken_before_it(stable: bool, tmp_path: Path) -> None:
    norm = {"do_stable_layer_norm": stable, "feat_extract_norm": "layer" if stable else "group"}
    model = save_encoder(tmp_path / "encoder", normalises=False, **norm)
    waveform = make_waveform("chirp", 0.5)
    with torch.no_grad():
        states = model(torch.from_numpy(waveform)[None], output_hidden_states=True).hidden_states
    for layer, expected in enumerate(states):
        np.testing.assert_allclose(front_end_of(tmp_path / "encoder", layer).log_mel(waveform), expected[0], atol=1e-5)


def test_lengths_follow_from_the_convolutions(tmp_path: Path) -> None:
    save_encoder(tmp_path / "encoder")
    front_end = front_end_of(tmp_path / "encoder")
    metadata = front_end.metadata
    assert (metadata["hop_length"], metadata["win_length"], front_end.min_samples) == (HOP, FIELD, FIELD)
    assert metadata["frame_rate"] == 100
    assert [front_end.num_frames(n) for n in (FIELD - 1, FIELD, FIELD + HOP - 1, FIELD + HOP)] == [0, 1, 1, 2]
    assert len(front_end.log_mel(make_waveform("noise", FIELD / 16000))) == 1
    assert not tick_labels(metadata)


def test_frames_are_stored_like_all_frames_and_bound_to_the_weights(tmp_path: Path) -> None:
    save_encoder(tmp_path / "encoder")
    (tmp_path / "data").mkdir()
    for number, name in enumerate("abc"):
        soundfile.write(tmp_path / f"{name}.wav", make_waveform("noise", 0.5, seed=number), 16000)

    def build() -> Any:
        encoder_files.open_encoder.cache_clear()  # a stage is a process
        waveform_encoder._load_model.cache_clear()
        front_end = section_of(tmp_path / "encoder")
        return _build(tmp_path, tmp_path / "data" / "spectrogram", dtype="float32", front_end=front_end)

    first = build()
    (frames,) = FrameReader(first).read(["a"])
    expected = front_end_of(tmp_path / "encoder").log_mel(make_waveform("noise", 0.5, seed=0))
    assert frames.shape == expected.shape
    np.testing.assert_allclose(frames, expected, atol=1e-3)  # the file has 16 bits
    digest = first.metadata["params"]["digest"]
    assert len(digest) == 32
    save_encoder(tmp_path / "encoder", seed=1)
    again = build()
    assert again.metadata["params"]["digest"] != digest
    assert np.abs(FrameReader(again).read(["a"])[0] - frames).max() > 0.1


def test_what_is_missing_or_changed_is_named(tmp_path: Path) -> None:
    save_encoder(tmp_path / "encoder")
    with pytest.raises(SonolexError, match=r"layer: expected 0 to 3, the blocks of .*, found 4; name one"):
        front_end_of(tmp_path / "encoder", 4)
    with pytest.raises(SonolexError, match=r"digest: .*model.safetensors: expected 0, found \w{32}; put the file back"):
        front_end_of(tmp_path / "encoder", digest="0")
    with pytest.raises(
        SonolexError, match=r"expected 'facebook/hubert-base-ls960' to be a folder here, .*without a network"
    ):
        front_end_of(Path("facebook/hubert-base-ls960"))
    (tmp_path / "encoder/model.safetensors").unlink()
    encoder_files.open_encoder.cache_clear()
    with pytest.raises(SonolexError, match=r"expected model.safetensors or pytorch_model.bin, found none; complete"):
        front_end_of(tmp_path / "encoder")
    (tmp_path / "encoder/config.json").write_text('{"model_type": "whisper"}')
    with pytest.raises(
        SonolexError, match=r"expected a waveform encoder of model_type wav2vec2, .*, found model_type: 'whisper'"
    ):
        front_end_of(tmp_path / "encoder")


def test_it_is_not_exported_from_the_waveform(tmp_path: Path) -> None:
    save_encoder(tmp_path / "encoder")
    metadata = {**front_end_of(tmp_path / "encoder").metadata, "dtype": "float32", "scale": 1.0, "offset": 0.0}
    with pytest.raises(
        SonolexError, match=r"front end: expected one of kaldi, .*found waveform_encoder; .*--input frames"
    ):
        front_end_module(metadata)


def test_params_are_composed_and_near_duplicates_are_not_searched_among_states(tmp_path: Path) -> None:
    save_encoder(tmp_path / "encoder")
    front_end = f"spectrogram.front_end={{kind: waveform_encoder, source: {tmp_path / 'encoder'}}}"
    document, _ = compose("demo", [front_end], Path(__file__).parents[1] / "recipes")
    assert document["spectrogram"]["front_end"] == section_of(tmp_path / "encoder", 6)
    document["spectrogram"]["front_end"]["layer"] = 2
    (tmp_path / "params.yaml").write_text(dump(document))
    with pytest.raises(ParamsError, match=r"duplicates.search: expected false with .*kind waveform_encoder"):
        load_experiment(tmp_path / "params.yaml")
    document["duplicates"]["search"] = False
    (tmp_path / "params.yaml").write_text(dump(document))
    with pytest.raises(ParamsError, match=r"waveform_encoder: frame_textures cannot read its frames"):
        load_experiment(tmp_path / "params.yaml")
    frames = [name for name in document["experiment"]["frame_models"] if "textures" not in name]
    tokens = [name for name in document["experiment"]["token_models"] if "textures" not in name]
    document["experiment"] |= {"frame_models": frames, "token_models": tokens, "ensembles": []}
    document["report"]["headline"] = frames[:1]
    (tmp_path / "params.yaml").write_text(dump(document))
    load_experiment(tmp_path / "params.yaml")
