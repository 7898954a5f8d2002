"""K-means vocabulary: one codebook, whose tokens are the centroids of whole frames, or of stacks of them.

With normalisation "l2" frames are directions, and it is spherical k-means (Dhillon and Modha, 2001), but that centroids keep
their lengths, which say how alike the frames of a token are.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from pipeline.artifacts.vocabulary import Codebooks
from pipeline.vocabulary.base import sum_codes
from pipeline.vocabulary.clustering import Task, cluster_one
from pipeline.vocabulary.nearest import nearest_codes
from pipeline.vocabulary.settings import ClusteringParams


class Params(ClusteringParams):
    kind: Literal["kmeans"]


def fit(params: Params, features: np.ndarray) -> Codebooks:
    """Fit on all of `features` (token, feature); the same ones give the same bits, on any number of threads."""
    codes, objective = cluster_one(params, Task(features, ("kmeans", 0), "whole frames"))
    return Codebooks(codes[None], [[0, features.shape[1]]], objective.tolist())


def encode(codebooks: Codebooks, features: np.ndarray, ends: Sequence[int] = ()) -> np.ndarray:
    """Return the nearest centroid of each row, (1, token)."""
    return nearest_codes(features, codebooks.codes[0], ends)


decode = sum_codes
