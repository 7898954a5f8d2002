"""Contract of a vocabulary kind: settings, and how codebooks are fitted, features encoded and tokens decoded.

Conventions: features (token, feature) float32, see `pipeline/vocabulary/features.py`; tokens (codebook, token) uint16,
before any merging. The axis "token" counts the frames, or stacks of frames, that are coded.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from pipeline.artifacts.vocabulary import Codebooks
from pipeline.vocabulary.settings import KindParams


class VocabularyKind(Protocol):
    """One kind: a module of this package, named by a line of `KINDS` in `pipeline/vocabulary/registry.py`.

    A kind is a module and not a class, so that a stage depends on those of its functions alone that it calls: another way to
    fit does not tokenise a corpus again (`pipeline/execution/code.py`).
    """

    @property
    def Params(self) -> type[KindParams]:  # noqa: N802 - a class
        """Section of params.yaml: `kind`, the keys of all kinds, its own keys, and what the kind is capable of."""

    def fit(self, params: Any, features: np.ndarray) -> Codebooks:
        """Fit on the sample's features; `params` are this kind's.

        The same params and features give the same bits. Raises CorpusError, which says what to change, when the features
        cannot be coded so.
        """

    def encode(self, codebooks: Codebooks, features: np.ndarray, ends: Sequence[int] = ()) -> np.ndarray:
        """Return the tokens of the features of clips; `ends` are the ends of the clips in `features`, where several.

        A clip's tokens follow from its own features to the bit, so no matrix product takes rows of two clips.
        """

    def decode(self, codebooks: Codebooks, tokens: np.ndarray) -> np.ndarray:
        """Return the features that tokens stand for: `sum_codes`, unless `Params.additive` is false."""


def sum_codes(codebooks: Codebooks, tokens: np.ndarray) -> np.ndarray:
    """Decode tokens as the sum of their codes, each in the features of its codebook; returns (token, feature) float32."""
    features = np.zeros((tokens.shape[1], codebooks.num_features), dtype=np.float32)
    for row, codes, (start, stop) in zip(tokens, codebooks.vectors, codebooks.bands, strict=True):
        features[:, start:stop] += codes[row]
    return features
