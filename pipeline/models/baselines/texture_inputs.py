"""Inputs of the texture-statistics classifier: frames of the spectrogram, or frames decoded from tokens."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np

from pipeline.artifacts.model import Reads
from pipeline.artifacts.vocabulary import Vocabulary
from pipeline.errors import ParamsError
from pipeline.models.base import VocabularySection
from pipeline.models.baselines.base import LazyClips, Setting, Weights
from pipeline.params import Params
from pipeline.vocabulary.rebuilding import SEPARABLE, separable_frames


class TextureInputParams(Params):
    """Section of a texture input."""

    kind: str

    def require_vocabulary(self, vocabulary: VocabularySection) -> None:
        """Raise ValueError for a vocabulary, given by its section, whose tokens cannot be read."""


class TextureInput(ABC):
    """Interface of inputs that return clips as frames (frame, mel) in the front end's units."""

    Params: ClassVar[type[TextureInputParams]]
    reads: ClassVar[Reads]

    def fit(self, setting: Setting) -> Weights:
        """Return the arrays that `frames` needs."""
        return {}

    @abstractmethod
    def frames(self, weights: Weights, inputs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """Return the frames of clips."""


class FramesParams(TextureInputParams):
    kind: Literal["frames"]


class Frames(TextureInput):
    """Log-mel frames of the spectrogram."""

    Params = FramesParams
    reads = "frames"

    def frames(self, weights: Weights, inputs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        return inputs


class TokensParams(TextureInputParams):
    kind: Literal["tokens"]

    def require_vocabulary(self, vocabulary: VocabularySection) -> None:
        require_separable(vocabulary)


class DecodedTokens(TextureInput):
    """Frames decoded from tokens (codebook, token), as sums over a table of frames that is stored with the model."""

    Params = TokensParams
    reads = "tokens"

    def fit(self, setting: Setting) -> Weights:
        """Return `tokens` (codebook, token, frame, mel), each token's share of its frames, and `silence` (frame, mel).

        Raises ParamsError for a vocabulary whose frames are not such sums.
        """
        vocabulary = setting.vocabulary
        assert vocabulary is not None  # the stage opens it for all that read tokens
        return dict(
            zip(("tokens", "silence"), frame_table(vocabulary, "models.*.kind texture_statistics"), strict=True)
        )

    def frames(self, weights: Weights, inputs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        return LazyClips(len(inputs), lambda clip: decode_tokens(weights["tokens"], weights["silence"], inputs[clip]))


def require_separable(vocabulary: VocabularySection) -> None:
    """Raise ValueError for a vocabulary, given by its section, whose frames are no sums of what each token adds."""
    found = None
    if vocabulary.bpe is not None:
        found = "merged tokens"
    elif vocabulary.hidden_states is not None:
        found = "tokens of a network's hidden states"
    elif not vocabulary.additive:
        found = f"kind {vocabulary.kind}, whose codes do not add up"
    elif vocabulary.normalisation in ("l2", "unit") and vocabulary.num_codebooks > 1:
        found = f"kind {vocabulary.kind} with {vocabulary.normalisation} and {vocabulary.num_codebooks} codebooks"
    if found is not None:
        raise ValueError(f"expected {SEPARABLE}, found {found}")


def frame_table(vocabulary: Vocabulary, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Return `separable_frames` of a vocabulary. Raises ParamsError, at the setting `where`, if it has none."""
    table = separable_frames(vocabulary)
    if table is None:
        raise ParamsError(
            f"{where}: expected a vocabulary of {SEPARABLE}, found {vocabulary.path}; leave it out of "
            "experiment.vocabularies, or the model out of experiment.token_models"
        )
    return table


def decode_tokens(codebook_frames: np.ndarray, silence: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Return the frames (frame, mel) of tokens (codebook, token)."""
    frames = np.zeros((tokens.shape[1], *codebook_frames.shape[2:]), dtype=np.float32)
    for added, codebook in zip(codebook_frames, tokens, strict=True):
        frames += added[codebook]
    decoded: np.ndarray = (frames + silence).reshape(-1, codebook_frames.shape[3])
    return decoded
