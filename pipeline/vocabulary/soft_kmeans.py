"""Soft (multiple) assignment: a frame is coded by its nearest centroids, the nearest first, with a weight for each rank.

A frame between two tokens is hardly more the one than the other; k-means tells it by one of them alone. Weighting tokens by
rank is due to Jiang, Ngo and Yang (2007, CIVR), who halve the weight from each rank to the next. Here the weights are those
under which the sample's frames come out nearest to what they were, and each rank has a codebook: the tokens at its weight.
So a frame is the sum of its tokens, as it is of residual ones.
"""

from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from pipeline.vocabulary.assignment import nearest_codes
from pipeline.vocabulary.clustering import Task, cluster
from pipeline.vocabulary.fitting import Codebooks
from pipeline.vocabulary.settings import CommonParams


class Params(CommonParams):
    kind: Literal["soft_kmeans"]
    nearest: int = Field(ge=2)  # tokens a frame

    @model_validator(mode="after")
    def _as_many_tokens(self) -> Self:
        if self.nearest > self.num_tokens:
            raise ValueError(f"expected nearest at most num_tokens ({self.num_tokens}), found {self.nearest}")
        if self.exact:
            raise ValueError(
                "expected exact false with kind soft_kmeans, whose weights are of the sample's tokens, found true"
            )
        return self


def fit(params: Params, features: np.ndarray) -> Codebooks:
    """Fit on all of `features` (token, feature). The objective is that of the nearest token alone."""
    codes, objective = cluster(params, Task(features, ("kmeans", 0), "whole frames"))
    whole = [[0, features.shape[1]]] * params.nearest
    ranked = nearest_codes(features, np.repeat(codes[None], params.nearest, axis=0), whole, [1.0] * params.nearest)
    products = np.zeros((params.nearest, params.nearest))
    wanted = np.zeros(params.nearest)
    for one, tokens in enumerate(ranked):
        wanted[one] = np.einsum("wf,wf->", codes[tokens], features, dtype=np.float64)
        for other in range(one + 1):
            products[one, other] = np.einsum("wf,wf->", codes[tokens], codes[ranked[other]], dtype=np.float64)
            products[other, one] = products[one, other]
    weights = np.linalg.lstsq(products, wanted, rcond=None)[0].astype(np.float32)
    return Codebooks(codes * weights[:, None, None], whole, objective.tolist(), weights.tolist())
