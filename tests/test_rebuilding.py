"""What words stand for, as frames again."""

from pathlib import Path

import numpy as np

from pipeline.artifacts.vocabulary import Vocabulary
from pipeline.vocabulary.assignment import nearest_codes, normalise_frames
from pipeline.vocabulary.kmeans import Params, fit
from pipeline.vocabulary.rebuilding import rebuild
from pipeline.vocabulary.statistics import distortion


def test_rebuilt_frames_lose_what_the_distortion_says() -> None:
    frames = np.random.default_rng(0).normal(-6, 3, (400, 8)).astype(np.float32)
    fitted = fit(
        Params(
            kind="kmeans", size=16, normalisation="standardise", bands=2, sample_frames=400, iterations=5, restarts=1,
            seed=0,
        ),
        frames,
    )  # fmt: skip
    z = normalise_frames(frames, fitted.mean, fitted.scale, fitted.normalisation)
    tokens = nearest_codes(z, fitted.codebooks, fitted.bands)
    vocabulary = Vocabulary(Path(), fitted.codebooks, fitted.mean, fitted.scale, np.empty(0), {"bands": fitted.bands})

    rebuilt = rebuild(vocabulary, tokens)

    lost = (((rebuilt - frames) / fitted.scale) ** 2).sum() / ((z - z.mean(0)) ** 2).sum()
    np.testing.assert_allclose(lost, distortion(z, tokens, fitted.codebooks, fitted.bands), rtol=1e-5)
    assert 0.1 < lost < 0.9
