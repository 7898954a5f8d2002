"""What tokens stand for, as frames again."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_features import labelled, windowed
from test_kinds import OWN, make_params, noise

from pipeline.artifacts.vocabulary import Vocabulary
from pipeline.vocabulary import kmeans
from pipeline.vocabulary.assignment import assign
from pipeline.vocabulary.base import sum_codes
from pipeline.vocabulary.features import normalise_frames
from pipeline.vocabulary.fitting import fit_vocabulary, token_levels
from pipeline.vocabulary.rebuilding import rebuild, token_spectra
from pipeline.vocabulary.statistics import distortion


def fit(frames: np.ndarray, **changes: Any) -> Vocabulary:
    """Return a vocabulary fitted on all frames of one clip, in memory."""
    params = make_params(**changes)
    features = params.features
    sample = windowed(frames, stack=features.stack, deltas=features.deltas, context=features.context)
    if features.lda:
        sample = labelled(sample)
    fitted = fit_vocabulary(params, sample)
    codes, own = fitted.codebooks.codes, fitted.codebooks.own
    metadata = {"kind": fitted.kind, "additive": params.additive, "bands": fitted.codebooks.bands}
    metadata |= {"num_tokens": codes.shape[1], "num_codebooks": len(codes)}
    counts = np.zeros(codes.shape[:2], np.int64)
    vocabulary = Vocabulary(Path(), fitted.space, codes, np.empty(0), counts, metadata, own=own)
    (tokens,) = assign(vocabulary, [frames])
    counts = np.stack([np.bincount(row, minlength=codes.shape[1]) for row in tokens])
    levels = token_levels(fitted.space, sample, tokens, counts)
    return replace(vocabulary, levels=levels, counts=counts)


LDA = {"dimensions": 5, "context": 2, "shrinkage": 0.01}


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize(
    "features", [{}, {"stack": 3}, {"deltas": 2}, {"stack": 2, "pca": 5}, {"stack": 2, "lda": LDA}]
)
def test_rebuilt_frames_lose_what_the_distortion_says(kind: str, features: dict[str, Any]) -> None:
    if kind == "bands":
        features = {name: value for name, value in features.items() if name != "pca"}
    frames = noise(400)
    vocabulary = fit(frames, kind=kind, num_tokens=16, **features)
    (tokens,) = assign(vocabulary, [frames])

    rebuilt = rebuild(vocabulary, tokens)

    stack = vocabulary.space.stack
    assert len(rebuilt) == -(-400 // stack) * stack
    z, decoded = (
        normalise_frames(x, vocabulary.space.mean, vocabulary.space.scale, "standardise")
        for x in (frames, rebuilt[:400])
    )
    assert 0.05 < distortion(z, decoded) < 0.97


def test_frames_are_what_the_kind_decodes_to(monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = fit(noise(400), num_tokens=16, normalisation="none")
    monkeypatch.setattr(kmeans, "decode", lambda codebooks, tokens: 2 * sum_codes(codebooks, tokens))
    tokens = np.arange(16, dtype=np.uint16)[None]
    np.testing.assert_array_equal(rebuild(vocabulary, tokens), 2 * vocabulary.codebooks[0])


def test_enough_tokens_rebuild_everything() -> None:
    frames = noise(40)
    for changes in ({"kind": "bands"}, {"deltas": 1}, {"kind": "residual", "codebooks": 1}):
        vocabulary = fit(frames, num_tokens=40, sample_frames=40, **changes)
        np.testing.assert_allclose(rebuild(vocabulary, assign(vocabulary, [frames])[0]), frames, atol=1e-3)


def test_more_residual_codebooks_lose_less() -> None:
    frames, lost = noise(400), []
    for codebooks in (1, 2, 4):
        vocabulary = fit(frames, kind="residual", codebooks=codebooks, num_tokens=16)
        lost.append(((rebuild(vocabulary, assign(vocabulary, [frames])[0]) - frames) ** 2).mean())
    assert lost[0] > 1.2 * lost[1] > 1.2**2 * lost[2]


def test_l2_gives_back_how_loud_the_frames_of_a_token_were() -> None:
    shapes = np.repeat(np.array([[0, 0, 9, 9], [9, 9, 0, 0], [0, 9, 0, 9]], np.float32), 30, axis=0)
    gains = np.repeat([-20.0, 0, 20], 30)[:, None].astype(np.float32)
    frames = shapes + gains
    vocabulary = fit(frames, num_tokens=3, normalisation="l2", restarts=10)
    np.testing.assert_allclose(rebuild(vocabulary, assign(vocabulary, [frames])[0]), frames, atol=1e-3)


def test_the_spectrum_of_a_token_is_in_units_and_of_its_bands() -> None:
    frames = noise(400)
    vocabulary = fit(frames, kind="bands", stack=2, num_tokens=16)
    token = np.array([[7], [0], [0], [0]])
    np.testing.assert_allclose(
        token_spectra(vocabulary, 0)[7], rebuild(vocabulary, token)[:, :2].mean(axis=0), rtol=1e-5
    )
    np.testing.assert_allclose(
        token_spectra(vocabulary, 3)[0], rebuild(vocabulary, token)[:, 6:].mean(axis=0), rtol=1e-5
    )
