"""What a model attends to: the weights are its own, and lie where the stem has looked."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_clips, make_spectrogram
from matplotlib.image import imread
from networks import STEMS as ALL_STEMS
from networks import Section, build, network, params_of

from pipeline.artifacts.layout import Layout
from pipeline.artifacts.model import open_model, write_model
from pipeline.artifacts.spectrogram import open_spectrogram
from pipeline.artifacts.splits import SPLIT
from pipeline.errors import CorpusError, SonolexError
from pipeline.evaluation.attention import AttentionReader, ClipAttention
from pipeline.evaluation.prediction import open_predictor
from pipeline.models.encoders import transformer
from pipeline.spectrogram.band_scale import band_positions
from pipeline.spectrogram.mel import MelParams, mel_filters
from pipeline.training.inputs import FrameInputs
from tools import draw_attention

N_MELS, NUM_FRAMES = 24, 61
STEMS: dict[str, dict[str, Any]] = {
    "patches": ALL_STEMS["patches"],
    "convolution": {"kind": "convolution", "channels": [4, 8], "strides": [[4, 4], [2, 2]], "kernel": 3},
    "convolution_1d": ALL_STEMS["convolution_1d"],
    "linear": ALL_STEMS["linear"],
}


def section_of(stem: str, head: str = "mean", encoder: str = "transformer") -> Section:
    small = {"encoder__width": 16, "encoder__heads": 2, "encoder__mlp_ratio": 1.0}
    return network("frames", stem, encoder, head, **small) | {"stem": STEMS[stem]}


def make_model(folder: Path, stem: str, head: str = "mean", encoder: str = "transformer") -> Path:
    """Write an untrained model whose attention is far from even."""
    section = section_of(stem, head, encoder)
    model = build(section, {"n_mels": N_MELS}, 3)
    for name, values in model.named_parameters():
        if "qkv" in name:
            values.data *= 4
    weights = {name: values.numpy() for name, values in model.state_dict().items()}
    metadata = {"model": "ast", "params": params_of(section).model_dump(mode="json"), "classes": ["a", "b", "c"]}
    metadata |= {"label_kind": "one"}
    normalisation = {"kind": "corpus", "std_scale": 1.0, "mean": 0.5, "std": 2.0}
    metadata |= {"reads": "frames", "input": {"n_mels": N_MELS, "normalisation": normalisation}, "source": ""}
    metadata |= {"front_end": {}, "fold": "1", "seed": 0, "num_parameters": 1, "clips_seen": 1}
    write_model(folder, weights, metadata)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    frames = {clip: generator.normal(size=(NUM_FRAMES, N_MELS)).astype(np.float32) for clip in ("one", "two")}
    make_spectrogram(tmp_path / "data" / "spectrogram", frames, failed=["lost"])
    make_clips(
        tmp_path / "data" / "clips.parquet", tmp_path, ["one.wav", "two.wav", "lost.wav"], labels=[[0], [1], [2]]
    )
    columns = {"clip_id": ["one", "two", "lost"], "role": ["test", "train", "test"]}
    SPLIT.write(tmp_path / "data" / "splits" / "1.parquet", columns, {"fold": "1", "seed": 0, "rule": ""})
    return tmp_path / "data"


def read(model_path: Path, data: Path) -> ClipAttention:
    return AttentionReader(open_model(model_path), FrameInputs(open_spectrogram(data / "spectrogram"))).read("one")


@pytest.mark.parametrize("head", ["mean", "mean_max", "class", "class_distillation"])
@pytest.mark.parametrize(
    ("stem", "encoder"), [*((stem, "transformer") for stem in STEMS), ("convolution", "conformer")]
)
def test_logits_are_the_models_own_while_weights_are_kept(
    data: Path, tmp_path: Path, stem: str, encoder: str, head: str
) -> None:
    path = make_model(tmp_path / "m/1/0", stem, head, encoder)
    attention = read(path, data)
    inputs = FrameInputs(open_spectrogram(data / "spectrogram"))
    own = open_predictor(open_model(path)).predict(inputs, ["one"])[0]
    np.testing.assert_allclose(attention.logits, own, rtol=0, atol=1e-5)
    # A layer less, or weights of another clip, would give others.
    assert np.abs(own - open_predictor(open_model(path)).predict(inputs, ["two"])[0]).max() > 1e-3
    num_tokens = {"class": 1, "class_distillation": 2}.get(head, 0)
    num_positions = {"patches": 11 * 5, "convolution": 8, "convolution_1d": 31, "linear": NUM_FRAMES}[stem]
    assert attention.layers.shape == (2, num_tokens + num_positions, num_tokens + num_positions)
    np.testing.assert_allclose(attention.layers.sum(axis=2), 1, atol=1e-5)
    for layer in (None, 1, 2):
        assert attention.over_positions(layer).mean() == pytest.approx(1, abs=1e-6)
        assert attention.over_spectrogram(layer).shape == (NUM_FRAMES, N_MELS)


def known(stem: str, weights: np.ndarray, num_tokens: int) -> ClipAttention:
    part = build(section_of(stem), {"n_mels": N_MELS}, 3).stem
    return ClipAttention(np.zeros(3), weights.astype(np.float32), num_tokens, part, NUM_FRAMES, N_MELS)


def test_class_tokens_speak_for_the_clip_and_are_no_part_of_the_picture() -> None:
    weights = np.full((1, 57, 57), 1e9)  # what the positions attend to among themselves is not asked
    weights[0, :2] = 0
    weights[0, 0, [0, 2]] = 0.4, 0.6  # half of them on each of the first two positions
    weights[0, 1, [1, 3]] = 0.4, 0.6
    over = known("patches", weights, 2).over_positions(1)
    assert over[:2] == pytest.approx([55 / 2, 55 / 2])
    assert not over[2:].any()


@pytest.mark.parametrize(("position", "frames", "bands"), [(0, (0, 8), (0, 8)), (5 * 3 + 2, (15, 23), (8, 16))])
def test_a_patch_covers_its_own_frames_and_bands(
    position: int, frames: tuple[int, int], bands: tuple[int, int]
) -> None:
    weights = np.zeros((1, 55, 55))
    weights[0, :, position] = 1
    over = known("patches", weights, 0).over_spectrogram(1)
    lit = np.argwhere(np.nan_to_num(over) > 0)
    assert [lit[:, 0].min(), lit[:, 0].max() + 1] == list(frames)
    assert [lit[:, 1].min(), lit[:, 1].max() + 1] == list(bands)
    assert np.isnan(over[58:]).all()  # frames 58 to 60 are in no whole patch
    assert np.isfinite(over[:58]).all()


@pytest.mark.parametrize("stem", ["patches", "convolution", "convolution_1d"])
def test_positions_lie_where_the_stem_looks(data: Path, tmp_path: Path, stem: str) -> None:
    # Silence everywhere but in a few frames: the positions that then change must be those drawn over these frames.
    model = open_model(make_model(tmp_path / "m/1/0", stem))
    reader = AttentionReader(model, FrameInputs(open_spectrogram(data / "spectrogram")))
    network = reader._network
    quiet = torch.zeros(1, NUM_FRAMES, N_MELS)
    loud = quiet.clone()
    loud[0, 24:27, 8:12] = 5.0
    with torch.no_grad():
        changed = (network.stem(loud, None)[0] - network.stem(quiet, None)[0]).norm(dim=-1)[0].numpy()
    weights = np.zeros((1, len(changed), len(changed)))
    weights[0] = np.maximum(changed, 0)[None]
    over = np.nan_to_num(known(stem, weights, 0).over_spectrogram(1))
    frame, band = np.unravel_index(over.argmax(), over.shape)
    assert 20 <= frame <= 30
    if stem == "patches":
        assert 4 <= band < 16
        assert over[40:].max() == 0


def test_rollout_of_layers_that_attend_to_themselves_is_even() -> None:
    weights = np.stack([np.eye(8)] * 3)
    assert known("convolution", weights, 0).over_positions() == pytest.approx(np.ones(8))


def test_rollout_multiplies_layers_from_the_first_to_the_last() -> None:
    first, second = np.eye(8)[[3] * 8], np.eye(8)[[5] * 8]  # all attend to position 3, then all to position 5
    over = known("convolution", np.stack([first, second]), 0).over_positions()
    by_hand = (np.eye(8) + second) / 2 @ (np.eye(8) + first) / 2
    assert over == pytest.approx(by_hand.mean(axis=0) * 8)
    assert over[3] > over[5] > over[0]


def test_the_picture_is_drawn_for_the_fold_that_tests_the_clip(data: Path, tmp_path: Path) -> None:
    make_model(tmp_path / "models/ast/1/0", "patches", "class")
    layout = Layout(tmp_path)
    run = draw_attention.run_that_tests("one", "ast", 0, layout)
    picture = tmp_path / "attention.png"
    draw_attention.run("one", layout.model(run), layout, picture, layer=2)
    pixels = imread(picture)
    assert pixels.shape[1] > 1000
    assert (pixels[:, :, 0] - pixels[:, :, 2]).max() > 0.5  # something is red over the grey
    expected = "expected a model ast with seed 0 of the fold that tests two, found folds: 1; choose one"
    with pytest.raises(CorpusError, match=expected):
        draw_attention.run_that_tests("two", "ast", 0, layout)


def test_the_axes_are_in_seconds_and_hertz(data: Path) -> None:
    metadata = open_spectrogram(data / "spectrogram").metadata
    figure = draw_attention.draw(
        "t", np.zeros((200, 24)), np.ones((200, 24)), metadata, label="attention, rollout\n(1 = even)"
    )
    above, below, *bars = figure.axes
    assert below.get_xlim() == (0.0, 2.0)
    assert (below.get_xlabel(), above.get_ylabel()) == ("time (s)", "frequency (Hz)")
    assert [text.get_text() for text in above.get_yticklabels()] == ["125", "500", "1k", "2k", "4k"]
    assert [bar.get_ylabel() for bar in bars] == ["log-mel, ln(power)", "attention, rollout\n(1 = even)"]


def test_frequencies_lie_where_the_front_ends_put_their_bands() -> None:
    mel = {"f_min": 0.0, "f_max": 8000.0, "n_mels": 40, "sample_rate": 16000, "n_fft": 2048}
    for scale in ("htk", "slaney"):
        settings = {"kind": "mel", "win_length": 2048, "hop_length": 160, "norm": "none", "log_floor": -100.0}
        params = MelParams(**MelParams.unrecorded, **settings, mel_scale=scale, **mel)
        filters, hertz = mel_filters(params), np.array([500.0, 1000.0, 4000.0])
        nearest = filters[:, np.round(hertz * 2048 / 16000).astype(int)].argmax(axis=0)
        found = band_positions(mel | {"units": "dB", "params": {"mel_scale": scale}}, hertz.tolist())
        assert np.abs(found - nearest).max() <= 0.55


@pytest.mark.parametrize(
    ("clip", "layer", "message"),
    [
        ("nobody", None, "no clip 'nobody'"),
        ("lost", None, "lost: the clip has no frames"),
        ("one", 3, "expected one of 1 to 2, the layers of"),
    ],
)
def test_what_cannot_be_drawn_is_named(data: Path, tmp_path: Path, clip: str, layer: int | None, message: str) -> None:
    path = make_model(tmp_path / "m/1/0", "linear")
    with pytest.raises(SonolexError, match=message):
        draw_attention.run(clip, path, Layout(data.parent), tmp_path / "a.png", layer=layer)


@pytest.mark.parametrize(
    ("section", "found"),
    [
        ({"kind": "majority"}, "the kind majority"),
        (network("frames", "linear", "lstm", "mean"), "input frames, stem linear, encoder lstm, head pooled"),
    ],
)
def test_a_model_without_a_map_is_refused(data: Path, tmp_path: Path, section: Section, found: str) -> None:
    path = make_model(tmp_path / "m/1/0", "linear")
    metadata = {key: value for key, value in open_model(path).metadata.items() if key != "weights"}
    write_model(path, {"w": np.zeros(1, np.float32)}, metadata | {"params": section})
    with pytest.raises(
        SonolexError, match=rf"by one of the encoders transformer, conformer, cnn, timm, found .*{found}"
    ):
        draw_attention.run("one", path, Layout(data.parent), tmp_path / "a.png", layer=None)


def test_attention_by_other_means_is_named(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_model(tmp_path / "m/1/0", "linear")
    monkeypatch.setattr(transformer, "self_attention", lambda qkv, *_: qkv[:, :, :16])
    with pytest.raises(SonolexError, match="expected 2 layers of attention, found 0 calls"):
        read(path, data)
