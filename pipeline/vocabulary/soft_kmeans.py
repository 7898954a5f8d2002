"""Soft (multiple) assignment: a frame is coded by its nearest centroids, the nearest first, with a weight for each rank.

A frame between two tokens is hardly more the one than the other; k-means describes it by one of them alone. Weighting tokens
by rank is due to Jiang, Ngo and Yang (2007, CIVR), who halve the weight from each rank to the next. Here the weights are
those that decode the sample's frames with the least squared error, and each rank has a codebook: the centroids times its
weight. So a frame is the sum of its tokens, as it is with residual tokens.
"""

from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from pipeline.artifacts.vocabulary import Codebooks, NamedArray
from pipeline.vocabulary.base import sum_codes
from pipeline.vocabulary.clustering import Task, cluster_one
from pipeline.vocabulary.nearest import nearest_codes
from pipeline.vocabulary.settings import ClusteringParams


class Params(ClusteringParams):
    kind: Literal["soft_kmeans"]
    nearest: int = Field(ge=2)  # tokens a frame

    @property
    def num_codebooks(self) -> int:
        return self.nearest

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.nearest > self.num_tokens:
            raise ValueError(f"expected nearest at most num_tokens ({self.num_tokens}), found {self.nearest}")
        if self.exact:
            raise ValueError(
                "expected exact false with kind soft_kmeans, whose weights are fitted on the sample's tokens, found true"
            )
        return self


def fit(params: Params, features: np.ndarray) -> Codebooks:
    """Fit on all of `features` (token, feature). The objective is that of the nearest token alone."""
    codes, objective = cluster_one(params, Task(features, ("kmeans", 0), "whole frames"))
    ranked = nearest_codes(features, codes, count=params.nearest)
    products = np.zeros((params.nearest, params.nearest))
    wanted = np.zeros(params.nearest)
    for one, tokens in enumerate(ranked):
        wanted[one] = np.einsum("wf,wf->", codes[tokens], features, dtype=np.float64)
        for other in range(one + 1):
            products[one, other] = np.einsum("wf,wf->", codes[tokens], codes[ranked[other]], dtype=np.float64)
            products[other, one] = products[one, other]
    weights = np.linalg.lstsq(products, wanted, rcond=None)[0].astype(np.float32)
    return Codebooks(
        codes * weights[:, None, None],
        [[0, features.shape[1]]] * params.nearest,
        objective.tolist(),
        {"weights": NamedArray(("rank",), weights)},
    )


def encode(codebooks: Codebooks, features: np.ndarray, ends: Sequence[int] = ()) -> np.ndarray:
    """Return the nearest centroid, the second nearest ... as (codebook, token): codebook r holds rank r."""
    centroids = codebooks.codes[0] / codebooks.own["weights"].values[0]
    return nearest_codes(features, centroids, ends, count=len(codebooks.codes))


decode = sum_codes
