"""External tokens: those of any codec or self-supervised model, computed by another program and read from a table.

Nothing is fitted: every fold has the same tokens, and the tokenizer that made them has seen other data. It is not part of
the project, so that tokens are there for the clips of the table alone, and cannot be turned into frames.
`pipeline/vocabulary/token_tables.py` reads the table, `pipeline/vocabulary/external_artifact.py` writes the artifact.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal, Never

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt

from pipeline.artifacts.vocabulary import Codebooks
from pipeline.errors import SonolexError
from pipeline.vocabulary.settings import KindParams


class Params(KindParams):
    computable: ClassVar[bool] = False

    kind: Literal["external"]
    table: str = Field(min_length=1)  # Parquet or JSON lines: clip_id, and tokens (codebook, token)
    codebooks: PositiveInt  # tokens at a time
    frame_rate: PositiveFloat  # tokens a second in each codebook
    vectors: str | None  # .npy, (codebook, token, feature): what embeddings start from; null = the tokens alone

    @property
    def bpe(self) -> None:
        """Byte-pair encoding, of which external tokens have none."""
        return

    @property
    def additive(self) -> bool:
        return False

    @property
    def supervised(self) -> bool:
        return False

    @property
    def normalisation(self) -> str:
        return "none"

    @property
    def num_codebooks(self) -> int:
        return self.codebooks

    @property
    def has_vectors(self) -> bool:
        return self.vectors is not None


def fit(params: Params, features: np.ndarray) -> Codebooks:
    """Raise SonolexError: tokens are read."""
    _refuse("fits nothing")


def encode(codebooks: Codebooks, features: np.ndarray, ends: Sequence[int] = ()) -> np.ndarray:
    """Raise SonolexError: the tokenizer is not at hand."""
    _refuse("cannot tokenise sounds: their tokenizer is another program")


def decode(codebooks: Codebooks, tokens: np.ndarray) -> np.ndarray:
    """Raise SonolexError: the tokens stand for no log-mel frames."""
    _refuse("has no frames that tokens stand for")


def _refuse(reason: str) -> Never:
    raise SonolexError(f"vocabularies: kind external {reason}; take another kind where that is needed")
