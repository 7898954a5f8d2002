"""K-means vocabulary: one codebook, whose tokens are the centroids of whole frames, or of stacks of them.

With normalisation "l2" frames are directions, and it is spherical k-means (Dhillon and Modha, 2001), but that centroids keep
their lengths, which say how alike the frames of a token are.
"""

from typing import Literal

import numpy as np

from pipeline.vocabulary.clustering import Task, cluster
from pipeline.vocabulary.fitting import Codebooks
from pipeline.vocabulary.settings import CommonParams


class Params(CommonParams):
    kind: Literal["kmeans"]


def fit(params: Params, features: np.ndarray) -> Codebooks:
    """Fit on all of `features` (token, feature); the same ones give the same bits, on any number of threads."""
    codes, objective = cluster(params, Task(features, ("kmeans", 0), "whole frames"))
    return Codebooks(codes[None], [[0, features.shape[1]]], objective.tolist())
