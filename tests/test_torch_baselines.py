"""Classical models as torch modules give the logits of `predict`, for clips of any length."""

import numpy as np
import pytest
import torch
from test_baselines import BAG, FRONT_END, STATISTICS, fit, make_inputs, one_hot
from test_rebuilding import fit as fit_tokens
from test_textures import COPIES, NUM_MELS, RATE, make_frames, make_model, noise, tremolos

from pipeline.errors import SonolexError
from pipeline.models.baselines import texture_statistics
from pipeline.models.baselines.base import Baseline, Setting
from pipeline.models.baselines.majority import Majority, MajorityParams
from pipeline.models.baselines.ngram import NgramParams
from pipeline.models.baselines.torch_modules import baseline_module
from pipeline.models.baselines.torch_textures import (
    MIN_FRAMES,
    ClipStatistics,
    augmented_copies,
    autocorrelation,
    scaled_length,
)
from pipeline.vocabulary.assignment import assign

CLASSES = np.repeat(np.arange(3), 8)


@pytest.mark.parametrize("factor", [0.8, 0.5, 0.75, 1 / 3, 0.99, np.exp(0.16), np.exp(-0.16), np.exp(0.4), 1.0])
def test_lengths_are_rounded_as_python_rounds(factor: float) -> None:
    lengths = list(range(3000))
    assert [scaled_length(length, float(factor)) for length in lengths] == [
        round(length * factor) for length in lengths
    ]


@pytest.mark.parametrize("length", [MIN_FRAMES, 5, 37, 200])
def test_copies_are_those_of_the_pipeline(length: int) -> None:
    frames = noise(length)
    groups = list(augmented_copies(torch.from_numpy(frames)[None], COPIES))
    found = {copy[0].numpy().tobytes() for group in groups for copy in group}
    assert found == {copy.tobytes() for copy in texture_statistics.augmented_copies(frames, COPIES)}
    assert all(len({copy.shape for copy in group}) == 1 for group in groups)


@pytest.mark.parametrize("length", [2, 3, 10, 99, 500, 667, 668, 800, 1500])
@pytest.mark.parametrize(("num_mels", "frame_rate"), [(NUM_MELS, RATE), (12, 31.25)])
def test_statistics_are_those_of_the_pipeline(length: int, num_mels: int, frame_rate: float) -> None:
    clips = np.random.default_rng(length).normal(-5, 3, (2, length, num_mels)).astype(np.float32)
    found = ClipStatistics(-8.0, frame_rate, num_mels)(torch.from_numpy(clips)).numpy()
    expected = [texture_statistics.extract_features(clip, floor=-8.0, frame_rate=frame_rate) for clip in clips]
    np.testing.assert_allclose(found, np.stack(expected), atol=2e-3)
    assert np.quantile(np.abs(found - expected), 0.99) < 1e-4


def test_autocorrelation_by_hand() -> None:
    series = torch.tensor([[1.0, 2.0, 3.0]])[:, :, None].expand(2, -1, 4)
    found = autocorrelation(series, 5)
    assert found.shape == (2, 5, 4)
    assert found[1, :, 3].tolist() == pytest.approx([14.0, 8.0, 3.0, 0.0, 0.0], abs=1e-5)


def logits_of(
    model: Baseline, weights: dict[str, np.ndarray], clips: list[np.ndarray], num_mels: int = NUM_MELS
) -> np.ndarray:
    """Return the module's logits (clip, class) of clips of one length."""
    module = baseline_module(model.params, weights, num_mels)
    dtype = np.int64 if model.reads == "tokens" else np.float32
    with torch.no_grad():
        logits: np.ndarray = module(torch.from_numpy(np.stack(clips).astype(dtype))).numpy()
    return logits


@pytest.mark.parametrize("model", [BAG, STATISTICS, Majority(MajorityParams(kind="majority"))])
def test_logits_are_those_of_predict(model: Baseline) -> None:
    inputs = make_inputs(model, CLASSES)
    weights = fit(model, inputs, one_hot(CLASSES))
    axis = 1 if model.reads == "tokens" else 0
    shortest = min(clip.shape[axis] for clip in inputs)
    clips = [clip.take(range(shortest), axis=axis) for clip in inputs]
    np.testing.assert_allclose(logits_of(model, weights, clips), model.predict(weights, clips), atol=1e-4)


def test_texture_logits_are_those_of_predict() -> None:
    model = make_model()
    weights = model.fit(tremolos(CLASSES), one_hot(CLASSES), Setting({}, FRONT_END, "one", 0))  # type: ignore[arg-type]
    clips = [clip[:240] for clip in tremolos(CLASSES[:3])]
    np.testing.assert_allclose(logits_of(model, weights, clips), model.predict(weights, clips), atol=1e-3)


def test_texture_logits_of_tokens_are_those_of_predict() -> None:
    model, vocabulary = make_model(input={"kind": "tokens"}), fit_tokens(make_frames(600), num_tokens=16, stack=2)
    clips = assign(vocabulary, [make_frames(60, seed=number) for number in range(9)])
    classes = np.arange(9) % 3
    weights = model.fit(clips, one_hot(classes), Setting({}, FRONT_END, "one", 0, vocabulary))  # type: ignore[arg-type]
    found = logits_of(model, weights, clips, num_mels=len(vocabulary.space.mean))
    np.testing.assert_allclose(found, model.predict(weights, clips), atol=1e-3)


def test_n_grams_are_refused_by_name() -> None:
    with pytest.raises(
        SonolexError, match=r"expected one of the kinds bag_of_tokens, .* found ngram, .*; export one of"
    ):
        baseline_module(NgramParams(kind="ngram", order=2), {}, NUM_MELS)
