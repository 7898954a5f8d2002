"""The registry of vocabularies: what `vocabulary.kind` may say.

A kind is one file with `Params` (its section, with `kind`, `sample_frames` and `seed`) and `fit(params, frames) -> Fit`, a
line in `KINDS` and, from the second kind on, a member of the union: `Annotated[A | B, Field(discriminator="kind")]`.
Assigning words needs nothing of the kind: see `pipeline/vocabulary/assignment.py`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.vocabulary import kmeans
from pipeline.vocabulary.fitting import Fit

VocabularyParams = kmeans.Params

KINDS: dict[str, Callable[[Any, np.ndarray], Fit]] = {"kmeans": kmeans.fit}


def fit_vocabulary(params: VocabularyParams, frames: np.ndarray) -> Fit:
    """Fit the kind of vocabulary that `params` describe on sampled training frames (frame, mel) float32."""
    return KINDS[params.kind](params, frames)
