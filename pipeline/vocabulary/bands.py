"""Band tokens: the mel bands in equal groups, each with a codebook of its own (product quantisation; Jegou et al., 2011).

A token stands for what happens in one part of the spectrum, whatever happens in the others. With stacked frames it is a
patch of the spectrogram, so many bands wide and so many frames long.
"""

from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
from pydantic import PositiveInt, model_validator

from pipeline.artifacts.vocabulary import Codebooks
from pipeline.vocabulary.base import sum_codes
from pipeline.vocabulary.clustering import Task, cluster_each
from pipeline.vocabulary.nearest import nearest_codes
from pipeline.vocabulary.settings import ClusteringParams


class Params(ClusteringParams):
    kind: Literal["bands"]
    bands: PositiveInt  # groups of mel bands, a divisor of the front end's n_mels

    @property
    def groups(self) -> int:
        return self.bands

    @property
    def num_codebooks(self) -> int:
        return self.bands

    @model_validator(mode="after")
    def _no_pca(self) -> Self:
        if self.features.pca is not None:
            raise ValueError(
                "expected features.pca null with kind bands, since principal components mix the mel bands that it keeps "
                f"apart, found {self.features.pca}; use kind kmeans or residual for whitened features, or features.lda, "
                "which is fitted in each group by itself"
            )
        return self


def fit(params: Params, features: np.ndarray) -> Codebooks:
    """Fit on all of `features` (token, feature), which stand group after group; see `pipeline/vocabulary/fitting.py`."""
    width = features.shape[1] // params.bands
    bands = [[start, start + width] for start in range(0, features.shape[1], width)]
    tasks = [
        Task(features[:, start:stop], ("kmeans", start), f"group {group} of mel bands")
        for group, (start, stop) in enumerate(bands)
    ]
    fitted = cluster_each(params, tasks)
    objective = np.sum([objective for _, objective in fitted], axis=0)
    return Codebooks(np.stack([codes for codes, _ in fitted]), bands, objective.tolist())


def encode(codebooks: Codebooks, features: np.ndarray, ends: Sequence[int] = ()) -> np.ndarray:
    """Return the nearest centroid of each group's features, (codebook, token)."""
    groups = zip(codebooks.vectors, codebooks.bands, strict=True)
    return np.concatenate([nearest_codes(features[:, start:stop], codes, ends) for codes, (start, stop) in groups])


decode = sum_codes
