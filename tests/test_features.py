"""Features of tokens by hand: slopes, stacks, patches and PCA, and the way back."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_kinds import fit_frames, make_params, noise

from pipeline.artifacts.vocabulary import FeatureSpace
from pipeline.errors import ParamsError
from pipeline.vocabulary.features import (
    clip_features,
    frame_levels,
    normalise_frames,
    slopes,
    unstack_features,
    window_places,
)
from pipeline.vocabulary.fitting import fit_normalisation, fit_space
from pipeline.vocabulary.sampling import FrameSample


def make_space(n_mels: int = 4, **changes: Any) -> FeatureSpace:
    ones = np.ones(n_mels, np.float32)
    plain = {"normalisation": "none", "deltas": 0, "stack": 1, "groups": 1, "mean": 0 * ones, "scale": ones}
    none = {"delta_scale": ones, "centre": np.empty(0, np.float32), "components": np.empty((0, 0), np.float32)}
    return FeatureSpace(**plain | none | changes)


def ramp(num_frames: int, n_mels: int = 4) -> np.ndarray:
    """Return frames whose value is 10 t + band."""
    return (10 * np.arange(num_frames)[:, None] + np.arange(n_mels)).astype(np.float32)


def windowed(frames: np.ndarray, *, stack: int, deltas: int, context: int = 0) -> FrameSample:
    tokens = np.arange(-(-len(frames) // stack))
    margin = deltas + context
    windows = frames[window_places(tokens, len(frames), stack=stack, margin=margin)]
    return FrameSample(windows, margin, {})


def labelled(sample: FrameSample, num_classes: int = 6) -> FrameSample:
    """Return a sample as though its tokens were of as many clips as classes, each of its own class."""
    parts = np.array_split(np.arange(len(sample.windows)), num_classes)
    counts = {f"clip{number}": len(part) for number, part in enumerate(parts)}
    return replace(sample, counts=counts, targets=np.eye(num_classes, dtype=np.float32))


def test_a_clips_features_follow_from_its_frames_to_the_bit() -> None:
    generator = np.random.default_rng(0)
    components = generator.normal(size=(12, 96)).astype(np.float32)
    space = make_space(16, deltas=1, stack=3, components=components, centre=np.ones(96, np.float32))
    clips = [generator.normal(size=(length, 16)).astype(np.float32) for length in (5, 700, 33, 1500)]
    apart = np.concatenate([clip_features(space, [clip]) for clip in clips])
    assert np.array_equal(clip_features(space, clips), apart)


def test_plain_features_are_the_frames() -> None:
    assert np.array_equal(clip_features(make_space(), [ramp(3), ramp(2)]), np.concatenate([ramp(3), ramp(2)]))


def test_a_stack_is_frames_in_a_row_and_the_last_frame_fills_up() -> None:
    features = clip_features(make_space(stack=2), [ramp(3)])
    assert features.tolist() == [[0, 1, 2, 3, 10, 11, 12, 13], [20, 21, 22, 23] * 2]


def test_patches_have_the_frames_of_each_group_together() -> None:
    features = clip_features(make_space(stack=2, groups=2), [ramp(2)])
    assert features.tolist() == [[0, 1, 10, 11, 2, 3, 12, 13]]


@pytest.mark.parametrize("deltas", [1, 2, 4])
def test_the_slope_of_a_line_is_its_slope(deltas: int) -> None:
    features = clip_features(make_space(deltas=deltas), [ramp(20)])
    assert features.shape == (20, 8)
    assert np.array_equal(features[:, :4], ramp(20))
    assert np.allclose(features[deltas:-deltas, 4:], 10, rtol=1e-6)
    assert (features[0, 4:] < 10).all()  # beyond the clip its first frame stands


def test_slopes_by_hand() -> None:
    window = np.array([[[1.0], [2], [4], [8], [16]]], np.float32)
    assert slopes(window, 2).ravel().tolist() == pytest.approx([(1 * (8 - 2) + 2 * (16 - 1)) / 10])


def test_context_is_the_frames_on_either_side_and_stays_in_the_clip() -> None:
    features = clip_features(
        make_space(2, context=1, stack=2, components=np.eye(8, dtype=np.float32), centre=0), [ramp(3, 2)]
    )
    assert features.tolist() == [[0, 1, 0, 1, 10, 11, 20, 21], [10, 11] + [20, 21] * 3]


CONTEXT = {"context": 2, "components": np.ones((3, 4 * 5), np.float32), "centre": np.zeros(4 * 5, np.float32)}


@pytest.mark.parametrize("changes", [{"stack": 3}, {"deltas": 2}, {"stack": 2, "deltas": 1, "groups": 2}, CONTEXT])
def test_no_clip_sees_the_frames_of_another(changes: dict[str, Any]) -> None:
    space, clips = make_space(**changes), np.split(noise(13, 4), [7, 8])
    apart = [clip_features(space, [clip]) for clip in clips]
    assert np.array_equal(clip_features(space, clips), np.concatenate(apart))


@pytest.mark.parametrize("kind", ["kmeans", "bands"])
@pytest.mark.parametrize("normalisation", ["standardise", "l2"])
def test_a_sample_has_the_features_that_its_clip_has(kind: str, normalisation: str) -> None:
    frames = noise(50)
    params = make_params(kind=kind, stack=3, deltas=2, normalisation=normalisation)
    space, features = fit_space(params, windowed(frames, stack=3, deltas=2))
    assert features.shape == (17, 8 * 3 * 2)
    assert np.array_equal(features, clip_features(space, [frames]))


@pytest.mark.parametrize("kind", ["kmeans", "bands"])
def test_a_sample_has_the_discriminants_that_its_clip_has(kind: str) -> None:
    frames = noise(50)
    params = make_params(kind=kind, stack=3, deltas=1, lda={"dimensions": 2, "context": 2, "shrinkage": 0.1})
    space, features = fit_space(params, labelled(windowed(frames, stack=3, deltas=1, context=2)))
    assert features.shape == (17, 2 * params.groups)
    np.testing.assert_allclose(features, clip_features(space, [frames]), atol=1e-5)


@pytest.mark.parametrize("normalisation", ["standardise", "l2"])
def test_slopes_weigh_as_much_as_frames(normalisation: str) -> None:
    params = make_params(deltas=2, normalisation=normalisation)
    _, features = fit_space(params, windowed(noise(500), stack=1, deltas=2))
    size = (features.astype(np.float64) ** 2).mean(axis=0)
    assert size[8:].sum() == pytest.approx(size[:8].sum(), rel=1e-3)


@pytest.mark.parametrize(
    "changes", [{}, {"stack": 3}, {"deltas": 1}, {"stack": 2, "groups": 2}, {"deltas": 2, "groups": 4}]
)
def test_frames_come_back_from_their_features(changes: dict[str, int]) -> None:
    space = make_space(**changes)
    frames = unstack_features(space, clip_features(space, [noise(12, 4)]))
    assert np.array_equal(frames, noise(12, 4))


def test_whitened_features_are_uncorrelated_and_invert() -> None:
    frames = noise() @ np.random.default_rng(1).normal(size=(8, 8)).astype(np.float32)
    sample = windowed(frames, stack=2, deltas=0)
    space, features = fit_space(make_params(stack=2, pca=16), sample)
    assert np.allclose(np.cov(features.T, bias=True), np.eye(16), atol=1e-3)
    z = normalise_frames(frames, space.mean, space.scale, "standardise")
    assert np.allclose(unstack_features(space, features), z, atol=1e-3)
    _, first = fit_space(make_params(stack=2, pca=3), sample)
    assert np.allclose(first, features[:, :3], atol=1e-4)


def test_pca_keeps_what_varies_most() -> None:
    frames = noise(500, 8)
    frames[:, 5] *= 50
    space = fit_frames(frames, normalisation="none", pca=1).space
    assert np.abs(space.components[0]).argmax() == 5
    assert space.components[0, 5] > 0


def test_more_dimensions_than_features_is_an_error() -> None:
    with pytest.raises(ParamsError, match=r"features.pca: expected at most 8 dimensions, .* the 8 features .* found 9"):
        fit_frames(noise(), pca=9)
    frames = noise()
    frames[:, 0] = -15.9  # a band that never changes cannot be whitened
    with pytest.raises(ParamsError, match=r"expected at most 7 dimensions, .* found 8"):
        fit_frames(frames, pca=8)


def test_levels_are_what_l2_forgets() -> None:
    frames, zero, one = noise(), np.full(8, -6, np.float32), np.ones(8, np.float32)
    z = normalise_frames(frames, zero, one, "l2")
    level, length = frame_levels(frames, zero, one, "l2").T[:, :, None]
    assert np.allclose(z * length + level - 6, frames, atol=1e-4)


def test_unit_frames_keep_their_direction_alone() -> None:
    frames, zero, one = np.abs(noise()) + 0.1, np.zeros(8, np.float32), np.ones(8, np.float32)
    mean, scale = fit_normalisation(frames, "unit")
    np.testing.assert_array_equal(np.stack([mean, scale]), np.stack([zero, one]))
    z = normalise_frames(frames, zero, one, "unit")
    np.testing.assert_allclose(z, frames / np.linalg.norm(frames, axis=1, keepdims=True), rtol=1e-5)
    assert not normalise_frames(0 * frames, zero, one, "unit").any()  # a frame of zeros has no direction, and no NaN
    level, length = frame_levels(frames, zero, one, "unit").T[:, :, None]
    assert not level.any()
    np.testing.assert_allclose(z * length, frames, rtol=1e-5)
