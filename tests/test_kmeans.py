"""K-means finds clusters that are there, twice the same, and names what it cannot do."""

from typing import Any

import numpy as np
import pytest

from pipeline.errors import CorpusError, ParamsError
from pipeline.params import validate_params
from pipeline.vocabulary.fitting import count_distinct
from pipeline.vocabulary.kmeans import Params
from pipeline.vocabulary.registry import VocabularyParams, fit_vocabulary

PARAMS = {
    "kind": "kmeans",
    "size": 4,
    "normalisation": "standardise",
    "bands": 1,
    "sample_frames": 10000,
    "iterations": 10,
    "restarts": 3,
    "seed": 0,
}


def make_params(**changes: Any) -> Params:
    return validate_params(VocabularyParams, PARAMS | changes, "vocabulary")


def noise(num_frames: int = 2000, n_mels: int = 8) -> np.ndarray:
    return np.random.default_rng(0).normal(-6, 3, (num_frames, n_mels)).astype(np.float32)


def test_well_separated_clusters_are_found() -> None:
    centres = np.array([[0, 0], [0, 10], [10, 0], [10, 10]], np.float32)
    frames = np.repeat(centres, 100, axis=0) + noise(400, 2) * 0.01
    fit = fit_vocabulary(make_params(normalisation="none", restarts=20), frames)
    found = fit.codebooks[0][np.lexsort(fit.codebooks[0].round().T[::-1])]
    expected = np.stack([frames[i * 100 : (i + 1) * 100].mean(axis=0) for i in range(4)])
    assert np.allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("bands", [1, 4])
def test_a_refit_is_bit_identical_and_another_seed_is_not(bands: int) -> None:
    params = make_params(size=32, bands=bands)
    first, second = (fit_vocabulary(params, noise()) for _ in range(2))
    assert first.codebooks.tobytes() == second.codebooks.tobytes()
    assert first.objective == second.objective
    other = fit_vocabulary(make_params(size=32, bands=bands, seed=1), noise())
    assert other.codebooks.tobytes() != first.codebooks.tobytes()


def test_the_objective_is_recorded_and_falls() -> None:
    objective = fit_vocabulary(make_params(size=16, iterations=7), noise()).objective
    assert len(objective) == 7
    assert np.all(np.diff(objective) <= 1e-5)


def test_no_frame_of_the_sample_is_dropped() -> None:
    # 2,000 frames a word are far past the 256 at which FAISS cuts down by itself: the means of 256 frames lie some
    # 0.2 from those of all.
    frames = noise(4000, 2)
    frames[2000:] += 100
    codes = fit_vocabulary(make_params(size=2, normalisation="none"), frames).codebooks[0]
    expected = frames.reshape(2, 2000, 2).mean(axis=1, dtype=np.float64)
    assert np.allclose(codes[codes[:, 0].argsort()], expected, atol=1e-3)


def test_bands_have_codebooks_of_their_own() -> None:
    fit = fit_vocabulary(make_params(bands=4), noise())
    assert fit.codebooks.shape == (4, 4, 2)
    assert fit.bands == [[0, 2], [2, 4], [4, 6], [6, 8]]


def test_standardising_leaves_constant_bands_alone() -> None:
    frames = noise()
    frames[:, 3] = -15.942
    fit = fit_vocabulary(make_params(), frames)
    assert fit.scale[3] == 1
    assert np.allclose(np.delete(fit.scale, 3), np.delete(frames.std(axis=0), 3), rtol=1e-5)
    assert np.allclose(fit.mean, frames.mean(axis=0, dtype=np.float64), rtol=1e-5)


def test_distinct_rows_are_counted() -> None:
    assert count_distinct(np.array([[0, 1], [-0.0, 1], [1, 0], [0, 1]], np.float32)) == 2


def test_more_words_than_distinct_frames_is_an_error() -> None:
    with pytest.raises(CorpusError, match=r"vocabulary.size: expected .* found 4 words for 3 distinct among 300"):
        fit_vocabulary(make_params(), np.repeat(noise(3), 100, axis=0))


def test_constant_and_non_finite_frames_are_errors() -> None:
    with pytest.raises(CorpusError, match="found 50 equal ones"):
        fit_vocabulary(make_params(), np.full((50, 8), -15.9, np.float32))
    frames = noise()
    frames[7, 2] = np.nan
    with pytest.raises(CorpusError, match="found 1 of 2000 with NaN"):
        fit_vocabulary(make_params(), frames)


def test_wrong_params_name_their_keys() -> None:
    with pytest.raises(ParamsError, match=r"vocabulary.bands: expected a divisor of .* n_mels 8, found 3"):
        fit_vocabulary(make_params(bands=3), noise())
    with pytest.raises(ParamsError, match=r"expected sample_frames at least size \(4\), found 3"):
        make_params(sample_frames=3)
    with pytest.raises(ParamsError, match=r"vocabulary.size"):
        make_params(size=65534)  # its class token would not fit into uint16
