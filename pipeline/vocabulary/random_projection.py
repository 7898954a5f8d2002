"""Random-projection tokens, as in BEST-RQ (Chiu et al., 2022, "Self-supervised learning with random-projection quantizer").

Features are projected by a random matrix to a few dimensions, and a token is the random code vector that lies nearest when
both are brought to unit length. Matrix and code vectors are drawn from the seed and never trained; all that is learnt
from data is the normalisation of the features. With several codebooks each has a matrix of its own.

Such tokens have no centroid to decode to. What a token stands for is measured on the sample instead: in the first codebook
the mean of the features that have it, in each further one the mean of what the codebooks before left over. A token that the
sample does not have stands for the mean over all of it.

Conventions: `projections` (codebook, feature, dimension); `directions` (codebook, code, dimension), at unit length.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
from pydantic import PositiveInt

from pipeline.artifacts.vocabulary import Codebooks, NamedArray
from pipeline.seeding import named_generator
from pipeline.vocabulary.base import sum_codes
from pipeline.vocabulary.measuring import measure_codes
from pipeline.vocabulary.nearest import nearest_codes
from pipeline.vocabulary.settings import CommonParams


class Params(CommonParams):
    kind: Literal["random_projection"]
    codebooks: PositiveInt  # tokens a frame
    codebook_dim: PositiveInt  # dimensions that features are projected to; 16 in the paper

    @property
    def num_codebooks(self) -> int:
        return self.codebooks


def fit(params: Params, features: np.ndarray) -> Codebooks:
    """Draw projections and directions, and measure on `features` (token, feature) what their tokens stand for.

    The objective has one value: the mean squared distance of the features to what their tokens decode to.
    """
    num_features = features.shape[1]
    generator = named_generator(params.seed, "random_projection")
    limit = np.sqrt(6 / (num_features + params.codebook_dim))  # Xavier's (Glorot and Bengio, 2010)
    projections = generator.uniform(-limit, limit, (params.codebooks, num_features, params.codebook_dim))
    directions = generator.standard_normal((params.codebooks, params.num_tokens, params.codebook_dim))
    own = {
        "projections": NamedArray(("codebook", "feature", "dimension"), projections.astype(np.float32)),
        "directions": NamedArray(("codebook", "code", "dimension"), _unit(directions).astype(np.float32)),
    }
    undecoded = np.zeros((params.codebooks, params.num_tokens, num_features), np.float32)
    codebooks = Codebooks(undecoded, [[0, num_features]] * params.codebooks, own=own)
    codes, objective = measure_codes(features, encode(codebooks, features), params.num_tokens)
    return Codebooks(codes, codebooks.bands, [objective], own)


def encode(codebooks: Codebooks, features: np.ndarray, ends: Sequence[int] = ()) -> np.ndarray:
    """Return the direction in each codebook that lies nearest to the projected features, (codebook, token)."""
    ends = ends or [len(features)]
    projections, directions = (codebooks.own[name].values for name in ("projections", "directions"))
    tokens = np.empty((len(projections), len(features)), dtype=np.uint16)
    for number, (projection, codes) in enumerate(zip(projections, directions, strict=True)):
        projected = np.empty((len(features), projection.shape[1]), dtype=np.float32)
        for start, stop in pairwise([0, *ends]):  # no product takes rows of two clips
            projected[start:stop] = _unit(features[start:stop] @ projection)
        (tokens[number],) = nearest_codes(projected, codes, ends)
    return tokens


decode = sum_codes


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors (..., dimension) at unit length; a zero vector stays."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: np.ndarray = vectors / np.where(length > 0, length, 1)
    return unit
