"""Input of decoded tokens: the frames that a clip's tokens stand for, in the front end's units, are its feature map.

They are sums over a fixed table of the vocabulary (`separable_frames`), which is stored with the network and not trained. A
token that stands for several frames is one frame of the feature map, with these as its channels.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.artifacts.model import InputMetadata
from pipeline.artifacts.spectrogram import FrontEndMetadata
from pipeline.artifacts.vocabulary import NUM_SPECIAL_TOKENS, Vocabulary
from pipeline.models.base import VocabularySection
from pipeline.models.baselines.base import LazyClips
from pipeline.models.baselines.texture_inputs import decode_tokens, frame_table, require_separable
from pipeline.models.parts import Input, InputParams

WHERE = "models.*.input.kind decoded_tokens"  # for messages


class DecodedTokensParams(InputParams):
    kind: Literal["decoded_tokens"]

    @property
    def keeps_levels(self) -> bool:
        return True

    def metadata_of(self, front_end: FrontEndMetadata, vocabulary: Vocabulary | None) -> InputMetadata:
        assert vocabulary is not None  # the stage opens it for all that read tokens
        return InputMetadata(
            n_mels=front_end["n_mels"], log_floor=front_end["log_floor"], frames_per_token=vocabulary.space.stack
        )

    def levels(self, clips: Sequence[np.ndarray], vocabulary: Vocabulary | None) -> Sequence[np.ndarray]:
        assert vocabulary is not None
        table = frame_table(vocabulary, WHERE)
        return LazyClips(len(clips), lambda clip: decode_tokens(*table, clips[clip]))

    def require_vocabulary(self, vocabulary: VocabularySection) -> None:
        require_separable(vocabulary)


class DecodedTokens(Input):
    """Frames (B, T, frame * mel) decoded from tokens (B, codebook, T); special tokens stand for the mean frame.

    As that mix-up takes a clip beyond its end. It is what tokens add to, unless the vocabulary has normalisation none or
    unit, where they add to 0.
    """

    Params = DecodedTokensParams
    reads: ClassVar[Literal["tokens"]] = "tokens"
    table: Tensor  # (codebook * token, frame * mel): what each token adds to its frames
    centre: Tensor  # (frame * mel,): what they add to
    starts: Tensor  # (codebook,) int64: each codebook's first row of the table

    def __init__(self, params: DecodedTokensParams, metadata: InputMetadata) -> None:
        super().__init__(params, metadata)
        self.num_channels = self.frames_per_step = metadata["frames_per_token"]
        self.num_features = self.num_channels * metadata["n_mels"]
        books, rows = metadata["num_codebooks"], metadata["vocabulary_size"] + NUM_SPECIAL_TOKENS
        self.register_buffer("table", torch.zeros(books * rows, self.num_features))
        self.register_buffer("centre", torch.zeros(self.num_features))
        self.register_buffer("starts", rows * torch.arange(books), persistent=False)

    @property
    def silence(self) -> float:
        return self.metadata["log_floor"]

    def load_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Fill the table. Raises ParamsError for a vocabulary whose frames are no sums."""
        frames, centre = frame_table(vocabulary, WHERE)
        padded = np.pad(frames, [(0, 0), (0, NUM_SPECIAL_TOKENS), (0, 0), (0, 0)])
        if not centre.any():
            shares = vocabulary.counts / vocabulary.counts.sum(axis=1, keepdims=True)
            padded[:, frames.shape[1] :] = np.einsum("ct,ctfm->cfm", shares, frames)[:, None]
        self.table.copy_(torch.from_numpy(padded).reshape(self.table.shape))
        self.centre.copy_(torch.from_numpy(centre).flatten())

    def forward(self, inputs: Tensor) -> Tensor:
        rows = (inputs + self.starts[:, None]).mT  # (B, T, codebook)
        frames = F.embedding_bag(rows.flatten(0, 1), self.table, mode="sum") + self.centre
        return torch.unflatten(frames, 0, rows.shape[:2])
