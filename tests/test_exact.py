"""Lloyd over all frames finds what it should, whatever the batches, and holds one of them."""

from typing import Any

import numpy as np
import pytest
from test_kinds import CLUSTERED, fit_frames, noise
from test_sampling import Clips

from pipeline.vocabulary import exact
from pipeline.vocabulary.exact import refine
from pipeline.vocabulary.features import clip_features
from pipeline.vocabulary.fitting import Fit
from pipeline.vocabulary.registry import KINDS


class NoisyClips(Clips):
    """Clips of noise in memory, which differ."""

    def __init__(self, count: int, length: int) -> None:
        super().__init__({f"c{number}": length for number in range(count)})
        self.frames = noise(count * length).reshape(count, length, 8)
        self.longest_read = 0

    def read(self, clip_ids: Any) -> list[np.ndarray]:
        self.longest_read = max(self.longest_read, sum(self.lengths[clip] for clip in clip_ids))
        return [self.frames[int(clip[1:])] for clip in clip_ids]


def start(reader: NoisyClips, **changes: Any) -> Fit:
    """Return a fit on the first tenth of the clips."""
    sample = reader.frames[: len(reader.frames) // 10].reshape(-1, 8)
    return fit_frames(sample, **{"num_tokens": 16, "iterations": 5} | changes)


@pytest.mark.parametrize("kind", CLUSTERED)
def test_all_frames_leave_less_over_than_the_sample_did(kind: str) -> None:
    reader = NoisyClips(40, 50)
    refined = refine(start(reader, kind=kind), reader, list(reader.lengths), iterations=20)
    assert refined.exact is not None
    assert refined.exact["tokens"] == 2000
    assert 1 <= refined.exact["iterations"] <= 20
    assert refined.exact["distortion_after"] < 0.97 * refined.exact["distortion_before"]


def test_every_code_ends_at_the_mean_of_its_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "_SETTLED", 0.0)
    reader = NoisyClips(20, 50)
    fit = refine(start(reader, num_tokens=8), reader, list(reader.lengths), iterations=300)
    features = clip_features(fit.space, list(reader.frames))
    (tokens,) = KINDS[fit.kind].encode(fit.codebooks, features)
    means = np.stack([features[tokens == token].mean(axis=0, dtype=np.float64) for token in range(8)])
    np.testing.assert_allclose(fit.codebooks.codes[0], means, atol=1e-5)


def test_one_update_by_hand() -> None:
    reader = NoisyClips(10, 50)
    fit = start(reader, normalisation="none")
    once = refine(fit, reader, list(reader.lengths), iterations=1)
    frames = reader.frames.reshape(-1, 8).astype(np.float64)
    distances = ((frames[:, None] - fit.codebooks.codes[0]) ** 2).sum(axis=2)
    tokens, spread = distances.argmin(axis=1), ((frames - frames.mean(axis=0)) ** 2).sum()
    assert once.exact is not None
    assert once.exact["distortion_before"] == pytest.approx(distances.min(axis=1).sum() / spread, abs=1e-5)
    for token in np.unique(tokens):
        np.testing.assert_allclose(once.codebooks.codes[0, token], frames[tokens == token].mean(axis=0), rtol=1e-4)


def test_batches_do_not_matter_and_bound_what_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = NoisyClips(40, 50)
    fit = start(reader, kind="residual")
    whole = refine(fit, reader, list(reader.lengths), iterations=3)
    monkeypatch.setattr(exact, "FRAMES_PER_BATCH", 120)
    reader.longest_read = 0
    pieces = refine(fit, reader, list(reader.lengths), iterations=3)
    np.testing.assert_allclose(pieces.codebooks.codes, whole.codebooks.codes, atol=1e-5)
    assert reader.longest_read <= 120


def test_codes_that_are_given_nothing_stay() -> None:
    reader = NoisyClips(10, 50)
    fit = start(reader, normalisation="none")
    fit.codebooks.codes[0, 3] = 1e3
    refined = refine(fit, reader, list(reader.lengths), iterations=3)
    assert (refined.codebooks.codes[0, 3] == 1e3).all()


def test_the_best_of_all_passes_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact._Pass, "means", lambda _self, codes: codes + 1)  # every update loses
    reader = NoisyClips(10, 50)
    fit = start(reader)
    refined = refine(fit, reader, list(reader.lengths), iterations=3)
    assert refined.exact is not None
    assert refined.exact["distortion_after"] == refined.exact["distortion_before"]
    assert refined.codebooks.codes is fit.codebooks.codes
