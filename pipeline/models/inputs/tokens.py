"""Input of tokens: an embedding table per codebook; a clip's embeddings are its feature map.

With `embedding: centroids` the table is initialised with the vocabulary's codebook, so that similar tokens have similar
embeddings. It is trained with a fraction of the learning rate (`embedding_rate`; at the full rate it overfits, LOG.md
2026-11-21), or kept (0). Each codebook has separate features, and codebooks that share features, such as residual ones, add
up: the feature map is the decoded clip, normalised. With `random` the tables are random and all codebooks add up.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, Literal, cast

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from pipeline.artifacts.model import InputMetadata
from pipeline.artifacts.vocabulary import NUM_SPECIAL_TOKENS, Vocabulary
from pipeline.models.parts import Input, InputParams

NUM_NEIGHBOURS = 8  # nearest tokens that token noise draws from

_TOKENS_AT_ONCE = 4096  # rows of the distance matrix in memory: 256 MiB with 16,384 tokens


class TokensParams(InputParams):
    kind: Literal["tokens"]
    embedding: Literal["centroids", "random"]
    embedding_rate: float = Field(ge=0, le=1)  # learning rate of the table relative to the rest; 0 = not trained
    embedding_width: PositiveInt  # of random tables; centroids have their own

    @property
    def needs_vectors(self) -> bool:
        return self.embedding == "centroids"


class Tokens(Input):
    """Embedding of tokens (B, codebook, T) as a feature map (B, T, F)."""

    Params = TokensParams
    reads: ClassVar[Literal["tokens"]] = "tokens"
    supports_pretraining = True
    supports_attribution = True

    def __init__(self, params: TokensParams, metadata: InputMetadata) -> None:
        super().__init__(params, metadata)
        size, bands = metadata["vocabulary_size"], metadata["bands"]
        self.padding_token = size
        self.mask_token: int = size + 1
        if params.embedding == "random":
            bands = [[0, params.embedding_width]] * len(bands)
        # The padding row stays zero: `padding_idx` excludes it from the gradient.
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
        self.register_buffer("neighbours", itself, persistent=False)  # (codebook, token, neighbour)

    @property
    def weights(self) -> list[nn.Parameter]:
        return [cast(nn.Parameter, table.weight) for table in self.tables]

    def load_vocabulary(self, vocabulary: Vocabulary) -> None:
        self.load_codebooks(vocabulary.token_vectors())

    @torch.no_grad()
    def load_codebooks(self, codebooks: Sequence[np.ndarray]) -> None:
        """Compute each token's neighbours in the codebooks, and initialise the tables with them.

        Random tables are not changed. Rows of special tokens are initialised with zeros, the mean frame. Tokens without
        vectors, (code, 0), have no neighbours but themselves, so that token noise leaves them.
        """
        if not all(codebook.shape[1] for codebook in codebooks):
            return
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

    def attribute(self, inputs: Tensor, gradient: Tensor) -> Tensor:
        total, left = gradient.new_zeros(inputs.shape), 0
        for start_of_span, stop_of_span, books in self._spans:
            width = stop_of_span - start_of_span
            part = gradient[:, :, left : left + width]
            for book, start in books:
                first = start_of_span - start
                total[:, book] += (self.tables[book](inputs[:, book])[:, :, first : first + width] * part).sum(2)
            left += width
        return total

    def forward(self, inputs: Tensor) -> Tensor:
        vectors = [table(inputs[:, book]) for book, table in enumerate(self.tables)]
        parts = []
        for left, right, books in self._spans:
            shared = [vectors[book][:, :, left - start : right - start] for book, start in books]
            parts.append(shared[0] if len(shared) == 1 else torch.stack(shared).sum(0))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _shared_spans(bands: Sequence[Sequence[int]]) -> list[tuple[int, int, list[tuple[int, int]]]]:
    """Return the spans [from, to) of features between codebook borders, with the codebooks there and their starts."""
    edges = sorted({edge for band in bands for edge in band})
    spans = []
    for left, right in pairwise(edges):
        books = [(book, start) for book, (start, stop) in enumerate(bands) if start <= left and right <= stop]
        if books:
            spans.append((left, right, books))
    return spans


def _nearest_tokens(vectors: Tensor) -> Tensor:
    """Return the ids (token, neighbour) of the nearest other tokens of each token of (token, feature)."""
    count = min(NUM_NEIGHBOURS + 1, len(vectors))
    blocks = [vectors[first : first + _TOKENS_AT_ONCE] for first in range(0, len(vectors), _TOKENS_AT_ONCE)]
    return torch.cat([torch.cdist(block, vectors).topk(count, largest=False).indices[:, 1:] for block in blocks])
