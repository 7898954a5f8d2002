"""Frames of several channels, from the stored artifact to the logits of networks, and what cannot read them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, make_spectrogram
from networks import METADATA, build, make_inputs, network

from pipeline.artifacts.spectrogram import open_spectrogram
from pipeline.check_params import load_experiment
from pipeline.errors import ParamsError
from pipeline.models.baselines.base import Setting
from pipeline.models.parts import as_image
from pipeline.models.registry import BASELINES, validate_model_params
from pipeline.training.augmentation.masks import mask_features
from pipeline.training.augmentation.settings import MasksParams
from pipeline.training.batches import Batches
from pipeline.training.inputs import FrameInputs
from tools.compose import compose, dump

NAMES = ["log_mel", "centroid", "chroma"]
STACK = {"front_end": "stack", "channels": NAMES, "units": "dB", "params": {"kind": "stack", "n_mels": 8}}
READERS = [
    ("convolution", "transformer", "mean"),
    ("patches", "transformer", "class"),
    ("identity", "cnn", "mean_max"),
    ("identity", "timm", "attention"),
    ("linear", "transformer", "mean"),
    ("convolution_1d", "lstm", "last"),
]


def stacked(lengths: list[int]) -> dict[str, np.ndarray]:
    """Return clips of three channels of 8 bands, on scales as far apart as dB and Hz."""
    generator = np.random.default_rng(0)
    scale, shift = np.repeat([20.0, 900.0, 0.2], 8), np.repeat([-40.0, 2000.0, 0.5], 8)
    return {f"clip{n}": (shift + scale * generator.standard_normal((n, 24))).astype(np.float32) for n in lengths}


def inputs_of(path: Path, clips: dict[str, np.ndarray]) -> FrameInputs:
    return FrameInputs(open_spectrogram(make_spectrogram(path / "s", clips, front_end=STACK)))


def test_an_image_has_the_channels_one_by_one() -> None:
    features = torch.arange(2 * 5 * 6).reshape(2, 5, 6)
    image = as_image(features, 3)
    assert image.shape == (2, 3, 5, 2)
    assert torch.equal(image[:, 1], features[:, :, 2:4])
    assert torch.equal(as_image(features, 1)[:, 0], features)


@pytest.mark.parametrize(("stem", "encoder", "head"), READERS)
def test_networks_read_all_channels_and_no_padding(stem: str, encoder: str, head: str) -> None:
    metadata: Any = METADATA["frames"] | {"channels": 3}
    model = build(network("frames", stem, encoder, head), metadata).eval()
    frames, mask = make_inputs("frames", [70, 40])
    with torch.no_grad():
        logits = model(frames, mask)
        alone = model(frames[1:, :40], None)
    assert torch.allclose(logits[1:], alone, atol=1e-4)
    for channel in range(3):  # each has an effect
        changed = frames.clone()
        changed[:, :, 8 * channel : 8 * (channel + 1)] *= -1
        with torch.no_grad():
            assert not torch.allclose(model(changed, mask), logits, atol=1e-5)


def test_convolutions_see_channels_as_channels() -> None:
    """The first layer of a stem has a weight for each channel, and as many bands as one channel has."""
    metadata: Any = METADATA["frames"] | {"channels": 3}
    convolution = build(network("frames", "convolution"), metadata).stem.stack
    assert convolution.convolutions[0].weight.shape[1] == 3
    assert convolution.bands == 1  # of 8, by strides of 4 and 2
    patches = build(network("frames", "patches"), metadata).stem
    assert patches.project.weight.shape[1:] == (3, 8, 8)
    assert patches.num_rows == 1
    assert build(network("frames", "identity", "timm", "mean"), metadata).encoder.network.conv_stem.weight.shape[1] == 3


def test_one_channel_is_the_network_that_it_was() -> None:
    """A network without channels in its metadata has the weights and logits of one that never heard of them."""
    first, again = build(network("frames", "convolution")), build(network("frames", "convolution"), METADATA["frames"])
    frames, mask = make_inputs("frames", [30, 20])
    assert "channels" not in METADATA["frames"]
    assert torch.equal(first.eval()(frames, mask), again.eval()(frames, mask))


@pytest.mark.parametrize("kind", ["corpus", "clip"])
def test_each_channel_is_normalised_by_itself(kind: str, tmp_path: Path) -> None:
    clips = stacked([30, 50, 20])
    inputs, ids = inputs_of(tmp_path, clips), list(clips)
    assert inputs.metadata["channels"] == 3
    params: Any = validate_model_params("tested", network("frames", input__normalisation=kind))
    training = ids[:2]
    normalisation = params.input.fit_normalisation(lambda: inputs.statistics(training), ())
    if kind == "corpus":
        values = np.concatenate([clips[clip] for clip in training]).reshape(-1, 3, 8).astype(np.float64)
        expected = list(zip(values.mean((0, 2)), values.std((0, 2)), strict=True))
        np.testing.assert_allclose(normalisation["channels"], expected, rtol=1e-6)
    batch = Batches(inputs, ids, json.loads(json.dumps(normalisation))).take([0, 1, 2]).to(torch.device("cpu"))
    found = batch.inputs.reshape(3, 50, 3, 8)
    assert not found[2, 20:].any()
    if kind == "clip":
        own = found[2, :20]
        assert torch.allclose(own.mean((0, 2)), torch.zeros(3), atol=1e-3)
        assert torch.allclose(own.std((0, 2), correction=0), torch.ones(3), atol=1e-3)
    else:
        both = torch.cat([found[0, :30], found[1, :50]])
        assert torch.allclose(both.mean((0, 2)), torch.zeros(3), atol=1e-3)
        assert torch.allclose(both.std((0, 2), correction=0), torch.ones(3), atol=1e-3)


def test_powers_of_several_channels_are_not_added(tmp_path: Path) -> None:
    """Mix-up in the domain of power would add Hz to dB."""
    clips = stacked([30])
    inputs = inputs_of(tmp_path, clips)
    params: Any = validate_model_params("tested", network("frames"))
    normalisation = params.input.fit_normalisation(lambda: inputs.statistics(list(clips)), ())
    assert Batches(inputs, list(clips), normalisation).power_scale is None


def test_all_channels_lose_the_same_bands() -> None:
    torch.manual_seed(0)
    masks = MasksParams(count=1, width=4)
    masked = mask_features(torch.ones(50, 6, 24), None, None, masks, num_channels=3).reshape(50, 6, 3, 8)
    assert torch.equal(masked[:, :, 0], masked[:, :, 1])
    assert torch.equal(masked[:, :, 0], masked[:, :, 2])
    assert 0 < int((masked == 0).sum()) < masked.numel() // 2


def test_frame_statistics_read_channels_and_texture_statistics_name_what_they_need() -> None:
    clips, targets = list(stacked([30, 31, 32, 33]).values()), np.eye(2, dtype=np.float32)[[0, 1, 0, 1]]
    setting: Any = Setting({}, STACK | {"frame_rate": 100.0}, "one", 0)  # type: ignore[typeddict-item]
    sections = compose("demo", [], REPOSITORY / "recipes")[0]["models"]
    models = {
        name: BASELINES[sections[name]["kind"]](validate_model_params(name, json.loads(json.dumps(sections[name]))))
        for name in ("frame_statistics", "frame_textures")
    }
    fitted = models["frame_statistics"].fit(clips, targets, setting)
    assert models["frame_statistics"].predict(fitted, clips).shape == (4, 2)
    with pytest.raises(ParamsError, match=r"log-mel frames in one channel.*found stack"):
        models["frame_textures"].fit(clips, targets, setting)


def _check(tmp_path: Path, *overrides: str) -> str:
    document, _ = compose("demo", overrides, REPOSITORY / "recipes")
    path = tmp_path / "params.yaml"
    path.write_text(dump(document))
    try:
        load_experiment(path)
    except ParamsError as error:
        return str(error)
    return ""


WITHOUT_TEXTURES = "experiment.frame_models=[ast, frame_statistics]"


@pytest.mark.parametrize("kind", ["stack", "mfcc"])
def test_what_cannot_read_a_front_end_is_named_before_a_run_and_the_advice_works(kind: str, tmp_path: Path) -> None:
    chosen = f"spectrogram.front_end.kind={kind}"
    found = _check(tmp_path, chosen)
    assert f"spectrogram.front_end.kind {kind}: frame_textures cannot read its frames: texture statistics need" in found
    assert not _check(tmp_path, chosen, WITHOUT_TEXTURES)
    assert not _check(tmp_path, "spectrogram.front_end.kind=mel")
    bands = [chosen, WITHOUT_TEXTURES, "vocabularies.kmeans.kind=bands"]
    assert "vocabularies.kmeans of kind bands divides log-mel frames" in _check(tmp_path, *bands)
    fixed = [chosen, "experiment.frame_models=[mlp, ast, frame_statistics]"]
    assert "mlp cannot read its frames: stem.kind fixed_length pads shorter clips" in _check(tmp_path, *fixed)
