"""Residual tokens: codebook after codebook, each coding what those before it left over (Juang and Gray, 1982).

The first token of a frame says roughly what it is, every further one corrects the sum of those before.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import PositiveInt

from pipeline.artifacts.vocabulary import Codebooks
from pipeline.vocabulary.base import sum_codes
from pipeline.vocabulary.clustering import Task, cluster_one
from pipeline.vocabulary.nearest import nearest_codes
from pipeline.vocabulary.settings import ClusteringParams


class Params(ClusteringParams):
    kind: Literal["residual"]
    codebooks: PositiveInt  # tokens a frame

    @property
    def num_codebooks(self) -> int:
        return self.codebooks


def fit(params: Params, features: np.ndarray) -> Codebooks:
    """Fit on all of `features` (token, feature). The objective is that of the last codebook: what all of them leave over."""
    rest, codebooks, objective = features.copy(), [], np.empty(0)
    for number in range(params.codebooks):
        codes, objective = cluster_one(
            params, Task(rest, ("residual", number), f"what {number} codebooks leave of frames")
        )
        rest -= codes[nearest_codes(rest, codes)[0]]
        codebooks.append(codes)
    return Codebooks(np.stack(codebooks), [[0, features.shape[1]]] * params.codebooks, objective.tolist())


def encode(codebooks: Codebooks, features: np.ndarray, ends: Sequence[int] = ()) -> np.ndarray:
    """Return the nearest code in each codebook of what those before it left over, (codebook, token)."""
    tokens = np.empty((len(codebooks.codes), len(features)), dtype=np.uint16)
    rest = features.copy()
    for number, codes in enumerate(codebooks.codes):
        (tokens[number],) = nearest_codes(rest, codes, ends)
        rest -= codes[tokens[number]]
    return tokens


decode = sum_codes
