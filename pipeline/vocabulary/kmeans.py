"""K-means vocabulary: the words are the centroids of normalised training frames (Lloyd, 1982; as FAISS computes it).

With `bands` = 1 a word stands for a whole frame. With more, the mel bands are cut into equal groups, each with a codebook
of its own, so that a word stands for what happens in one part of the spectrum, whatever happens in the others.
"""

from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from pipeline.artifacts.vocabulary import NUM_SPECIAL_TOKENS
from pipeline.errors import CorpusError, ParamsError
from pipeline.params import Params as BaseParams
from pipeline.seeding import named_seed
from pipeline.vocabulary.assignment import normalise_frames
from pipeline.vocabulary.fitting import Fit, check_frames, count_distinct, fit_normalisation


class Params(BaseParams):
    kind: Literal["kmeans"]
    size: int = Field(ge=2, le=2**16 - NUM_SPECIAL_TOKENS)  # words in each codebook; ids are stored as uint16
    normalisation: Literal["standardise", "l2", "none"]
    bands: PositiveInt  # equal groups of mel bands, each with its own codebook; 1 = whole frames
    sample_frames: PositiveInt  # at most this many frames are drawn
    iterations: PositiveInt  # of Lloyd's algorithm
    restarts: PositiveInt  # runs from other starting points, of which the best is kept
    seed: NonNegativeInt  # of the draw and of the starting points

    @model_validator(mode="after")
    def _enough_frames(self) -> Self:
        if self.sample_frames < self.size:
            raise ValueError(f"expected sample_frames at least size ({self.size}), found {self.sample_frames}")
        return self


def fit(params: Params, frames: np.ndarray) -> Fit:
    """Fit on all of `frames` (frame, mel) float32; the same frames give the same bits on one machine.

    Raises ParamsError when the mel bands do not divide into `bands`, and CorpusError when frames are not finite, all alike,
    or fewer distinct ones than words.
    """
    num_mels = frames.shape[1]
    if num_mels % params.bands:
        raise ParamsError(
            f"vocabulary.bands: expected a divisor of the front end's n_mels {num_mels}, found {params.bands}"
        )
    check_frames(frames)
    mean, scale = fit_normalisation(frames, params.normalisation)
    z = normalise_frames(frames, mean, scale, params.normalisation)
    width = num_mels // params.bands
    bands = [[start, start + width] for start in range(0, num_mels, width)]
    fitted = [_fit_codebook(params, np.ascontiguousarray(z[:, start:stop]), start, stop) for start, stop in bands]
    objective = np.sum([objective for _, objective in fitted], axis=0)
    codebooks = np.stack([codebook for codebook, _ in fitted])
    return Fit(codebooks, bands, params.normalisation, mean, scale, objective.tolist())


def _fit_codebook(params: Params, features: np.ndarray, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Cluster (frame, feature); return codes (code, feature) and the mean squared distance by iteration."""
    import faiss  # only fitting needs it; assigning does not

    num_frames, width = features.shape
    distinct = count_distinct(features)
    if distinct < params.size:
        raise CorpusError(
            f"vocabulary.size: expected at most as many words as distinct frames, found {params.size} words for {distinct} "
            f"distinct among {num_frames} sampled frames (mel bands {start} to {stop}); lower vocabulary.size"
            + (" or vocabulary.bands" if params.bands > 1 else "")
            + ", or raise vocabulary.sample_frames if it is what limits them"
        )
    best: tuple[np.ndarray, np.ndarray] | None = None
    # Not FAISS's own `nredo`: it strings the histories of several runs together, and runs that settle early are shorter.
    for restart in range(params.restarts):
        kmeans: Any = faiss.Kmeans(
            width,
            params.size,
            niter=params.iterations,
            seed=named_seed(params.seed, "kmeans", start, restart) % 2**31,
            # FAISS drops frames past 256 a centroid, and warns below 39 of them, unless told otherwise.
            min_points_per_centroid=1,
            max_points_per_centroid=-(-num_frames // params.size),
        )
        kmeans.train(features)
        # FAISS ends a run that has settled; it would have stayed where it is.
        history = np.pad(np.float64(kmeans.obj), (0, params.iterations - len(kmeans.obj)), mode="edge")
        if best is None or history[-1] < best[1][-1]:
            best = np.array(kmeans.centroids, dtype=np.float32), history
    assert best is not None  # restarts is positive
    return best[0], best[1] / num_frames
