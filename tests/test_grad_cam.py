"""Grad-CAM: known maps of networks that are written by hand, and maps of every convolutional encoder."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_spectrogram
from matplotlib.image import imread
from networks import Section, build, changed, network, params_of
from test_attention import make_model as make_transformer

from pipeline.artifacts.model import open_model, write_model
from pipeline.artifacts.spectrogram import open_spectrogram
from pipeline.errors import SonolexError
from pipeline.evaluation.explanation import class_number, open_explainer
from pipeline.evaluation.grad_cam import ClipGradCam, GradCamReader
from pipeline.evaluation.prediction import open_predictor
from pipeline.training.inputs import FrameInputs
from tools import draw_attention

N_MELS, NUM_FRAMES, LOUD_FRAMES = 24, 61, slice(20, 32)
BAND = 5
CLASSES = ["low", "high", "not low"]


def write(folder: Path, section: Section, model: Any) -> Path:
    metadata = {"model": "cnn", "params": params_of(section).model_dump(mode="json"), "classes": CLASSES}
    normalisation = {"kind": "none", "std_scale": 1.0, "mean": 0.0, "std": 1.0}
    metadata |= {"reads": "frames", "input": {"n_mels": N_MELS, "normalisation": normalisation}, "source": ""}
    metadata |= {"label_kind": "one", "front_end": {}, "fold": "1", "seed": 0, "num_parameters": 1, "clips_seen": 1}
    write_model(folder, {name: values.numpy() for name, values in model.state_dict().items()}, metadata)
    return folder


@pytest.fixture
def inputs(tmp_path: Path) -> FrameInputs:
    """Return a clip with a low tone for a while, and a high one after it."""
    frames = np.zeros((NUM_FRAMES, N_MELS), np.float32)
    frames[LOUD_FRAMES, BAND], frames[40:50, 18] = 3.0, 3.0
    make_spectrogram(tmp_path / "data" / "spectrogram", {"one": frames})
    return FrameInputs(open_spectrogram(tmp_path / "data" / "spectrogram"))


def one_band_model(folder: Path, strides: tuple[int, int] = (1, 1)) -> Path:
    """Write a network of a convolution with two channels: the first reads band 5, the second band 18.

    A kernel is as wide as all bands, so that only at its own band a channel's centre cell sees it.
    """
    section = changed(
        network("frames", "identity", "cnn", "mean"),
        {"encoder.channels": [2], "encoder.strides": [list(strides)], "encoder.kernel": 1},
    )
    model = build(section, {"n_mels": N_MELS}, 3).eval()
    for values in model.encoder.parameters():
        values.data.zero_()
    model.encoder.stack.convolutions[0].weight.data[:, 0, 0, 0] = torch.tensor([1.0, -1.0])
    model.encoder.stack.norms[0].weight.data.fill_(1.0)
    model.head.classify.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    model.head.classify.bias.data = torch.tensor([0.25, 0.0, 0.0])
    return write(folder, section, model)


def read(path: Path, inputs: FrameInputs, target: int | None = None) -> ClipGradCam:
    return GradCamReader(open_model(path), inputs).read("one", target)


def test_cells_sum_to_the_logit_less_its_bias(tmp_path: Path, inputs: FrameInputs) -> None:
    """With a linear classifier of means a gradient is the classifier's weight by the number of cells."""
    path = one_band_model(tmp_path / "m/1/0")
    for target, bias in enumerate([0.25, 0.0, 0.0]):
        found = read(path, inputs, target)
        assert found.cells.sum() == pytest.approx(found.logits[target] - bias, abs=1e-6)
    own = open_predictor(open_model(path)).predict(inputs, ["one"])[0]
    np.testing.assert_allclose(found.logits, own, atol=1e-6)


@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (4, 1)])
def test_the_map_lies_on_what_the_channel_reads(tmp_path: Path, inputs: FrameInputs, strides: tuple[int, int]) -> None:
    section = network("frames", "identity", "cnn", "mean")
    section = changed(
        section,
        {"encoder.channels": [2], "encoder.strides": [list(strides)], "encoder.kernel": 11},
    )
    model = build(section, {"n_mels": N_MELS}, 3).eval()
    weight = model.encoder.stack.convolutions[0].weight.data.zero_()
    weight[0, 0, 5, 5] = 1.0  # the centre: the cell's own frame and band
    weight[1, 0, 5, 0] = 1.0  # five bands below it
    model.head.classify.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    path = write(tmp_path / "m/1/0", section, model)
    over = read(path, inputs, 0).over_spectrogram()
    assert over.shape == (NUM_FRAMES, N_MELS)
    assert over.mean() == pytest.approx(1)
    loud = np.argwhere(over > 0.5 * over.max())
    for frame, band in loud.tolist():
        near_low = 20 - strides[0] < frame < 32 + strides[0] and abs(band - BAND) < strides[1]
        near_high = 40 - strides[0] < frame < 50 + strides[0] and abs(band - 18) < strides[1]
        assert near_low or near_high, (frame, band)
    if strides[1] == 1:
        moved = read(path, inputs, 1).over_spectrogram()
        assert int(moved[20:32].sum(0).argmax()) == BAND + 5


def test_nothing_that_speaks_for_a_class_is_an_empty_map(tmp_path: Path, inputs: FrameInputs) -> None:
    over = read(one_band_model(tmp_path / "m/1/0"), inputs, 2).over_spectrogram()
    lit = np.argwhere(over > 0)
    assert not set(map(tuple, lit.tolist())) & {(25, BAND), (45, 18)}


@pytest.mark.parametrize("head", ["mean_max", "attention", "deep", "per_class"])
@pytest.mark.parametrize("encoder", ["cnn", "timm"])
@pytest.mark.parametrize("stem", ["identity", "fixed_length"])
def test_every_convolutional_network_has_a_map(
    tmp_path: Path, inputs: FrameInputs, stem: str, encoder: str, head: str
) -> None:
    section = network("frames", stem, encoder, head)
    if stem == "fixed_length":
        section = changed(section, {"stem.frames": 40})
    path = write(tmp_path / "m/1/0", section, build(section, {"n_mels": N_MELS, "log_floor": 0.0}, 3).eval())
    metadata = open_model(path)
    metadata.metadata["input"]["log_floor"] = 0.0
    found = open_explainer(metadata, inputs).read("one")
    own = open_predictor(metadata).predict(inputs, ["one"])[0]
    np.testing.assert_allclose(found.logits, own, atol=1e-5)
    over = found.over_spectrogram()
    assert over.shape == (NUM_FRAMES, N_MELS)
    assert np.isnan(over).any(axis=1).tolist() == [stem == "fixed_length" and t >= 40 for t in range(NUM_FRAMES)]
    assert (over[:40] >= 0).all()


def test_a_transformer_has_no_feature_maps(tmp_path: Path, inputs: FrameInputs) -> None:
    model = open_model(make_transformer(tmp_path / "m/1/0", "linear"))
    with pytest.raises(SonolexError, match=r"expected a network with a convolutional encoder .* encoder transformer"):
        GradCamReader(model, inputs)


def test_a_class_is_chosen_by_name(tmp_path: Path) -> None:
    model = open_model(one_band_model(tmp_path / "m/1/0"))
    assert [class_number(name, model) for name in ("", "low", "not low")] == [None, 0, 2]
    with pytest.raises(SonolexError, match=r"found 'hihg'; did you mean high\?"):
        class_number("hihg", model)


def test_the_picture_is_drawn(tmp_path: Path, inputs: FrameInputs) -> None:
    from conftest import make_clips

    from pipeline.artifacts.layout import Layout

    make_clips(tmp_path / "data" / "clips.parquet", tmp_path, ["one.wav"], labels=[[0]])
    path, picture = one_band_model(tmp_path / "m/1/0"), tmp_path / "cam.png"
    found = draw_attention.run("one", path, Layout(tmp_path), picture, target="high")
    assert isinstance(found, ClipGradCam)
    assert found.target == 1
    pixels = imread(picture)
    assert (pixels[:, :, 0] - pixels[:, :, 2]).max() > 0.5
    with pytest.raises(SonolexError, match=r"--layer: expected a network with attention, found the kind network"):
        draw_attention.run("one", path, Layout(tmp_path), picture, layer=1)
