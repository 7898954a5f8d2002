"""Residual tokens: codebook after codebook, each coding what those before it left over (Juang and Gray, 1982).

The first token of a frame says roughly what it is, every further one corrects the sum of those before.
"""

from typing import Literal

import numpy as np
from pydantic import PositiveInt

from pipeline.vocabulary.assignment import nearest_codes
from pipeline.vocabulary.clustering import Task, cluster
from pipeline.vocabulary.fitting import Codebooks
from pipeline.vocabulary.settings import CommonParams


class Params(CommonParams):
    kind: Literal["residual"]
    codebooks: PositiveInt  # tokens a frame


def fit(params: Params, features: np.ndarray) -> Codebooks:
    """Fit on all of `features` (token, feature). The objective is that of the last codebook: what all of them leave over."""
    whole = [[0, features.shape[1]]]
    rest, codebooks, objective = features.copy(), [], np.empty(0)
    for number in range(params.codebooks):
        codes, objective = cluster(params, Task(rest, ("residual", number), f"what {number} codebooks leave of frames"))
        rest -= codes[nearest_codes(rest, codes[None], whole)[0]]
        codebooks.append(codes)
    return Codebooks(np.stack(codebooks), whole * params.codebooks, objective.tolist())
