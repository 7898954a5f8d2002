"""The registry of vocabularies: what `kind` of an entry of `vocabularies` may say.

A kind is one file with `Params` (`CommonParams` with `kind` and its own keys) and `fit(params, features) -> Codebooks`, a
line in `KINDS` and a member of the union. Assigning needs nothing of the kind: see `pipeline/vocabulary/assignment.py`.
"""

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from pipeline.vocabulary import bands, kmeans, residual, soft
from pipeline.vocabulary.fitting import Codebooks, Fit, fit_space
from pipeline.vocabulary.sampling import FrameSample

VocabularyParams = Annotated[kmeans.Params | bands.Params | residual.Params | soft.Params, Field(discriminator="kind")]

KINDS: dict[str, Callable[[Any, np.ndarray], Codebooks]] = {
    "kmeans": kmeans.fit,
    "bands": bands.fit,
    "residual": residual.fit,
    "soft": soft.fit,
}


def fit_vocabulary(params: VocabularyParams, sample: FrameSample) -> Fit:
    """Fit the kind of vocabulary that `params` describe on frames of training clips.

    Raises ParamsError where params and frames do not go together, and CorpusError when frames are not finite, all alike, or
    fewer distinct ones than words.
    """
    space, features = fit_space(params, sample)
    return Fit(space, KINDS[params.kind](params, features))
