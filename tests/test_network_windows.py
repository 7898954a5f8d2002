"""Windows of a network: where they lie, how they are filled and pooled, and that all that runs a model has the same ones."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import METADATA, NUM_CLASSES, make_inputs, network, params_of
from test_stages_train import AST, make_artifacts, run_evaluate, run_train, short_training
from torch import Tensor

from pipeline.artifacts.clips import Link
from pipeline.artifacts.model import open_model
from pipeline.artifacts.predictions import matrix, open_predictions
from pipeline.errors import CorpusError, ParamsError, SonolexError
from pipeline.evaluation.attention import AttentionReader
from pipeline.evaluation.network_prediction import predict_time_steps
from pipeline.inference.windows import Windowing, pool_logits, window_bounds
from pipeline.models.network import Network
from pipeline.models.weight_groups import depths, weight_groups
from pipeline.models.windows import WindowParams, Windows
from pipeline.training.inputs import open_inputs_of

assert short_training  # a fixture of every test here too

CHOSEN = [
    ("frames", "convolution", "transformer", "mean"),
    ("frames", "patches", "conformer", "attention"),
    ("frames", "linear", "transformer", "class_distillation"),
    ("frames", "identity", "cnn", "mean_max"),
    ("frames", "fixed_length", "identity", "flatten"),
    ("tokens", "linear", "lstm", "last"),
]
RATE = 100.0  # Hz


def window(length: float, hop: float, fill: str = "shift", pooling: str = "mean") -> dict[str, Any]:
    return {"length": length, "hop": hop, "fill": fill, "pooling": pooling}


def windows_of(section: dict[str, Any], link: Link = "sigmoid", rate: float = 1.0) -> Windows:
    return Windows(WindowParams.model_validate(section), rate, -9.0, link, 4, 3)


def build(section: dict[str, Any], link: Link = "softmax") -> Network:
    """Return a network of 24 bands, or of tokens, at 100 Hz."""
    params = params_of(section)
    torch.manual_seed(0)
    metadata: Any = METADATA[params.reads] | {"frame_rate": RATE}
    return Network(params, metadata, NUM_CLASSES, link).eval()


def cut(windows: Windows, length: int) -> list[list[float]]:
    """Return the frames of a clip of the frames 0, 1, ... in its windows; NaN for what is masked."""
    found = windows.cut(torch.arange(float(length))[None, :, None], None)
    values = found.features[:, :, 0]
    return values.where(torch.ones_like(values).bool() if found.mask is None else found.mask, torch.nan).tolist()


@pytest.mark.parametrize(
    ("fill", "last", "short"),
    [
        ("shift", [7, 8, 9], [0, 1, float("nan")]),
        ("repeat", [9, 0, 1], [0, 1, 0]),
        ("silence", [9, -9, -9], [0, 1, -9]),
    ],
)
def test_ten_seconds_are_four_windows_of_three(fill: str, last: list[float], short: list[float]) -> None:
    windows = windows_of(window(3, 3, fill))
    assert cut(windows, 10) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], last]
    assert cut(windows, 9) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    np.testing.assert_array_equal(cut(windows, 2), [short])
    assert cut(windows, 3) == [[0, 1, 2]]
    assert [windows.frames_read(length) for length in (2, 3, 4, 10)] == [3, 3, 6, 12]


def test_a_clip_much_shorter_than_a_window_is_repeated_several_times() -> None:
    assert cut(windows_of(window(7, 7, "repeat")), 2) == [[0, 1, 0, 1, 0, 1, 0]]


def test_windows_overlap_by_the_hop() -> None:
    assert cut(windows_of(window(4, 2)), 9) == [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7], [5, 6, 7, 8]]


@pytest.mark.parametrize("length", [2.0, 3.0, 4.5])
@pytest.mark.parametrize("hop", [1.0, 2.0])
def test_shifted_windows_lie_where_those_of_prediction_lie(length: float, hop: float) -> None:
    """The windows of `sonolex predict --window` of the same length and hop."""
    windows = windows_of(window(length, hop), rate=2.0)
    for num_frames in range(9, 40):
        bounds = window_bounds(num_frames, 2, Windowing(length, hop))
        assert [[row[0], row[-1] + 1] for row in cut(windows, num_frames)] == [list(pair) for pair in bounds]
        np.testing.assert_allclose(windows.middles(num_frames), [(a + b - 1) / 2 for a, b in bounds])


@pytest.mark.parametrize(("fill", "last"), [("shift", 8.0), ("repeat", 9.0), ("silence", 9.0)])
def test_the_middle_of_a_filled_window_is_that_of_its_clip(fill: str, last: float) -> None:
    assert windows_of(window(3, 3, fill)).middles(10).tolist() == [1, 4, 7, last]


@pytest.mark.parametrize("fill", ["shift", "repeat"])
@pytest.mark.parametrize("pooling", ["mean", "max", "attention"])
@pytest.mark.parametrize("case", CHOSEN, ids="-".join)
def test_a_clip_has_the_logits_alone_that_it_has_beside_longer_ones(
    case: tuple[str, str, str, str], pooling: str, fill: str
) -> None:
    reads, *parts = case
    model = build(network(reads, *parts) | {"window": window(0.4, 0.3, fill, pooling)})
    lengths = [130, 71, 25]  # five windows, three, and less than one
    inputs, mask = make_inputs(reads, lengths)
    if reads == "frames":
        inputs = inputs.masked_fill(~mask[:, :, None], 1e3)
    axis = 2 if reads == "tokens" else 1
    with torch.no_grad():
        together = model(inputs, mask)
        for row, length in enumerate(lengths):
            alone = model(inputs[row : row + 1].narrow(axis, 0, length), None)
            torch.testing.assert_close(together[row : row + 1], alone, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("link", ["softmax", "sigmoid"])
@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_a_clips_logits_are_those_of_its_windows_pooled_as_prediction_pools_them(link: Link, pooling: Any) -> None:
    """What `sonolex predict --window` makes of the same network without windows."""
    whole = build(network(stem="convolution"), link)
    model = build(network(stem="convolution") | {"window": window(0.4, 0.3, "shift", pooling)}, link)
    model.load_state_dict(whole.state_dict())
    frames, _ = make_inputs("frames", [125])
    bounds = window_bounds(125, 100, Windowing(0.4, 0.3))
    assert len(bounds) == 4
    with torch.no_grad():
        parts = torch.cat([whole(frames[:, first:last], None) for first, last in bounds])
        found = model(frames, None)[0]
    expected = pool_logits(parts.numpy(), link, pooling)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    steps, real = model.classify_time_steps(model.embed(frames), None)
    torch.testing.assert_close(steps[0].detach(), parts, atol=1e-5, rtol=1e-5)
    assert real.all()


def log_odds(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities).logit()


def test_pooling_by_hand() -> None:
    """Two windows of 0.9 and 0.1, and one that is not real; the mean of logits would be 0.5 too, the maximum 0.9."""
    logits = torch.stack([log_odds(0.9, 0.2), log_odds(0.3, 0.2), log_odds(0.999, 0.999)])[None]
    real = torch.tensor([[True, True, False]])
    mean = windows_of(window(1, 1)).pool(logits, None, real)
    torch.testing.assert_close(mean.sigmoid(), torch.tensor([[0.6, 0.2]]))
    largest = windows_of(window(1, 1, pooling="max")).pool(logits, None, real)
    torch.testing.assert_close(largest.sigmoid(), torch.tensor([[0.9, 0.2]]))
    weights = torch.tensor([[[3.0, 1.0], [1.0, 1.0], [50.0, 50.0]]]).log()  # three to one, and even
    attention = windows_of(window(1, 1, pooling="attention")).pool(logits, weights, real)
    torch.testing.assert_close(attention.sigmoid(), torch.tensor([[0.75, 0.2]]))

    one = torch.tensor([[[0.9, 0.1], [0.3, 0.7]]]).log()
    mean = windows_of(window(1, 1), "softmax").pool(one + 5, None, None)
    torch.testing.assert_close(mean.exp(), torch.tensor([[0.6, 0.4]]))
    largest = windows_of(window(1, 1, pooling="max"), "softmax").pool(one + 5, None, None)
    torch.testing.assert_close(largest.softmax(1), torch.tensor([[0.9, 0.7]]) / 1.6)


@pytest.mark.parametrize("link", ["softmax", "sigmoid"])
@pytest.mark.parametrize("pooling", ["mean", "max", "attention"])
def test_gradients_are_finite_at_extreme_logits(link: Link, pooling: str) -> None:
    windows = windows_of(window(1, 1, pooling=pooling), link)
    logits = torch.tensor([[[1e4, -1e4, 0.0], [-1e4, 1e4, 3.0], [0.0, 0.0, 0.0]]], requires_grad=True)
    weights = torch.tensor([[[1e3, 0.0, 0.0], [-1e3, 0.0, 0.0], [0.0, 0.0, 0.0]]], requires_grad=True)
    pooled = windows.pool(logits, weights if pooling == "attention" else None, torch.tensor([[True, True, False]]))
    pooled.sum().backward()
    assert pooled.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad[0, 2] == 0).all()


def test_learned_attention_is_learned() -> None:
    model = build(network(stem="convolution") | {"window": window(0.4, 0.4, "shift", "attention")}).train()
    inputs, mask = make_inputs("frames", [130, 25])
    model(inputs, mask).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.windows.attend.parameters())  # type: ignore[union-attr]


def test_what_pools_windows_is_trained_with_the_head() -> None:
    model = build(network("frames", "linear", "transformer", "mean", window=window(0.2, 0.1, pooling="attention")))
    assert weight_groups(model)["head"].holds("windows.attend.weight")
    assert depths(model)["windows.attend.weight"] == 0


def test_a_trained_model_has_the_same_windows_in_evaluation_and_along_time(tmp_path: Path) -> None:
    """Clips of 30 to 35 frames at 100 Hz, in windows of ten frames without overlap."""
    paths = make_artifacts(tmp_path)
    card = run_train(paths, AST | {"window": window(0.1, 0.1, "repeat")})
    assert card["input"]["frame_rate"] == pytest.approx(100)
    predictions = open_predictions(run_evaluate(paths))
    clips = predictions.list("clip_id")
    model = open_model(paths.model)
    steps = predict_time_steps(model, open_inputs_of(model, paths.source), clips)
    assert {clip: len(found.logits) for clip, found in zip(clips, steps, strict=True)} == {"clip3": 4, "clip5": 4}
    np.testing.assert_allclose(steps[0].seconds, [0.05, 0.15, 0.25, 0.315])  # 33 frames
    pooled = [pool_logits(found.logits, "softmax", "mean") for found in steps]
    np.testing.assert_allclose(matrix(predictions, "logits"), pooled, atol=1e-5)


def test_micro_batches_are_bounded_in_the_frames_of_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Four clips of at most 34 frames are 136, but 25 windows of ten frames each are 250 for a clip."""
    caplog.set_level(logging.INFO)
    sizes: list[int] = []
    cut_clips = Windows.cut

    def noted(self: Windows, features: Tensor, mask: Tensor | None) -> Any:
        found = cut_clips(self, features, mask)
        sizes.append(found.features.shape[0] * found.features.shape[1])
        return found

    monkeypatch.setattr(Windows, "cut", noted)
    for module in ("inputs", "batches"):
        monkeypatch.setattr(f"pipeline.training.{module}.FRAMES_PER_BATCH", 600)
    run_train(make_artifacts(tmp_path), AST | {"window": window(0.1, 0.01)})
    assert max(sizes) <= 600
    assert len(sizes) == 4  # two micro-batches in each of two epochs


def test_a_clip_that_outgrows_a_batch_by_its_windows_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.training.inputs.FRAMES_PER_BATCH", 100)
    with pytest.raises(CorpusError, match=r"found clip0 of .*; windows that overlap less also have fewer frames"):
        run_train(make_artifacts(tmp_path), AST | {"window": window(0.1, 0.01)})


def test_a_window_longer_than_all_clips_is_named(tmp_path: Path) -> None:
    message = (
        r"window\.length: expected at most the 0\.34 s of the longest training clip, found 0\.5; shorten the window"
    )
    with pytest.raises(CorpusError, match=message):
        run_train(make_artifacts(tmp_path), AST | {"window": window(0.5, 0.5)})


def test_a_window_longer_than_the_stem_reads_is_named(tmp_path: Path) -> None:
    section = network("frames", "fixed_length", "identity", "flatten", stem__frames=20) | {"window": window(0.25, 0.25)}
    message = r"window\.length: expected at most 0\.20 s, the 20 frames of stem\.frames, found 0\.25, 25 frames"
    with pytest.raises(CorpusError, match=message):
        run_train(make_artifacts(tmp_path), section)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (network() | {"window": window(1, 2)}, r"hop: expected at most the length of 1 s, so that windows cover .*found 2"),
        (network() | {"window": window(0, 0)}, r"window\.length: input should be greater than 0"),
        (network() | {"window": window(1, 1, "zeros")}, r"window\.fill: input should be 'shift', 'repeat' or 'silence'"),
        (network("tokens") | {"window": window(1, 1, "silence")}, r"window\.fill: expected shift or repeat .*reads tokens"),
        (
            network(input__normalisation="clip") | {"window": window(1, 1, "silence")},
            r"window\.fill: expected shift or repeat .*input\.normalisation clip",
        ),
    ],
)  # fmt: skip
def test_windows_that_cannot_be_are_named(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        params_of(section)


def test_attention_over_windows_is_refused_by_name(tmp_path: Path) -> None:
    paths = make_artifacts(tmp_path)
    run_train(paths, AST | {"window": window(0.1, 0.1)})
    model = open_model(paths.model)
    with pytest.raises(SonolexError, match=r"expected a network with attention over frames.*, windows of 0\.1 s"):
        AttentionReader(model, open_inputs_of(model, paths.source))
