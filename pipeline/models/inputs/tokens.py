"""Input of tokens: each becomes a vector, and a clip's vectors are its feature map.

With `embedding: centroids` the table starts as the vocabulary's codebook, so that tokens which sound alike look alike, and
moves by a small part of the learning rate (`embedding_rate`; at the full rate the table overfits, LOG.md 2026-11-21), or
stays as it is (0). Each codebook has features of its own, and codebooks that share features, as residual ones do, add up
there: the feature map is the decoded clip, normalised. With `random` the tables start from noise and all codebooks add up.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, Literal, cast

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from pipeline.artifacts.vocabulary import NUM_SPECIAL_TOKENS
from pipeline.models.base import InputMetadata
from pipeline.models.parts import Input, InputParams

NUM_NEIGHBOURS = 8  # tokens that token noise chooses among

_TOKENS_AT_ONCE = 4096  # whose distances to all others are in memory: 256 MiB with 16,384 tokens


class TokensParams(InputParams):
    kind: Literal["tokens"]
    embedding: Literal["centroids", "random"]
    embedding_rate: float = Field(ge=0, le=1)  # learning rate of the table over that of the rest; 0 keeps it
    embedding_width: PositiveInt  # of a random table; centroids bring their own


class Tokens(Input):
    """Embeds tokens (B, codebook, T) as a feature map (B, T, F)."""

    Params = TokensParams
    reads: ClassVar[Literal["tokens"]] = "tokens"

    def __init__(self, params: TokensParams, metadata: InputMetadata) -> None:
        super().__init__(params, metadata)
        size, bands = metadata["vocabulary_size"], metadata["bands"]
        self.padding_token = size
        self.mask_token: int = size + 1
        if params.embedding == "random":
            bands = [[0, params.embedding_width]] * len(bands)
        # The padding row stays zero for good: `padding_idx` takes it out of the gradient.
        rows = size + NUM_SPECIAL_TOKENS
        self.tables = nn.ModuleList(
            nn.Embedding(rows, stop - start, padding_idx=self.padding_token) for start, stop in bands
        )
        self._spans = _shared_spans(bands)
        self.num_features = sum(right - left for left, right, _ in self._spans)
        self.starts_from_centroids = params.embedding == "centroids"
        self.embedding_rate = params.embedding_rate
        self.tables.requires_grad_(params.embedding_rate > 0)
        itself = torch.arange(rows)[None, :, None].repeat(len(bands), 1, 1)
        self.register_buffer("neighbours", itself, persistent=False)  # (codebook, token, near token)

    @property
    def weights(self) -> list[nn.Parameter]:
        """The table of each codebook, (token, feature); special tokens come last."""
        return [cast(nn.Parameter, table.weight) for table in self.tables]

    @torch.no_grad()
    def load_codebooks(self, codebooks: Sequence[np.ndarray]) -> None:
        """Find each token's neighbours in the codebooks, and start the tables there.

        Random tables stay as they are. The special rows of the others start at zero: an average frame.
        """
        near = []
        for weight, codebook in zip(self.weights, codebooks, strict=True):
            vectors = torch.from_numpy(codebook)
            if self.starts_from_centroids:
                weight.zero_()
                weight[: len(codebook)] = vectors
            nearest = _nearest_tokens(vectors)
            special = torch.arange(len(vectors), len(weight))[:, None].expand(-1, nearest.shape[1])
            near.append(torch.cat([nearest, special]))
        self.neighbours = torch.stack(near)

    def forward(self, inputs: Tensor) -> Tensor:
        vectors = [table(inputs[:, book]) for book, table in enumerate(self.tables)]
        parts = []
        for left, right, books in self._spans:
            shared = [vectors[book][:, :, left - start : right - start] for book, start in books]
            parts.append(shared[0] if len(shared) == 1 else torch.stack(shared).sum(0))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _shared_spans(bands: Sequence[Sequence[int]]) -> list[tuple[int, int, list[tuple[int, int]]]]:
    """Cut the features where a codebook begins or ends; return [from, to) and the codebooks there, each with its start."""
    edges = sorted({edge for band in bands for edge in band})
    spans = []
    for left, right in pairwise(edges):
        books = [(book, start) for book, (start, stop) in enumerate(bands) if start <= left and right <= stop]
        if books:
            spans.append((left, right, books))
    return spans


def _nearest_tokens(vectors: Tensor) -> Tensor:
    """Return for each token of (token, feature) the ids (token, near token) of those nearest to it but itself."""
    count = min(NUM_NEIGHBOURS + 1, len(vectors))
    blocks = [vectors[first : first + _TOKENS_AT_ONCE] for first in range(0, len(vectors), _TOKENS_AT_ONCE)]
    return torch.cat([torch.cdist(block, vectors).topk(count, largest=False).indices[:, 1:] for block in blocks])
