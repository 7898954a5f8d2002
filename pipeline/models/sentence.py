"""Sentences as pictures: every model of tokens begins with its words as vectors.

A word enters as a vector. With `embedding: centroids` the table is the vocabulary's codebook, so that words which sound
alike look alike: taken as a start and moved by a small part of the learning rate (`embedding_rate`; at the full rate the
table overfits, LOG.md 2026-11-21), or kept as it is (0). Each codebook stands in its own columns, and codebooks that share
columns, as residual ones do, add up there: the picture is what the words stand for, normalised. With `random` the tables
start from noise and all codebooks add up.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from pipeline.artifacts.vocabulary import NUM_SPECIAL_TOKENS
from pipeline.models.classifier import PictureClassifier
from pipeline.params import Params

NUM_NEIGHBOURS = 8  # words that word noise chooses among

_WORDS_AT_ONCE = 4096  # whose distances to all others are in memory: 256 MiB with 16,384 words


class EmbeddingParams(Params):
    embedding: Literal["centroids", "random"]
    embedding_rate: float = Field(ge=0, le=1)  # learning rate of the table over that of the rest; 0 keeps it
    embedding_width: PositiveInt  # of a random table; centroids bring their own


class SentenceClassifier(PictureClassifier):
    """`model(tokens, mask) -> logits`: (batch, codebook, frame) int64, (batch, frame) bool in, (batch, class) out.

    A subclass builds stem, encoder and head for a picture of `num_features`.
    """

    def __init__(self, params: EmbeddingParams, input_facts: dict[str, Any]) -> None:
        super().__init__()
        size, bands = input_facts["vocabulary_size"], input_facts["bands"]
        self.padding_token, self.mask_token = size, size + 1
        if params.embedding == "random":
            bands = [[0, params.embedding_width]] * len(bands)
        # The padding row stays zero for good: `padding_idx` takes it out of the gradient.
        rows = size + NUM_SPECIAL_TOKENS
        self.tables = nn.ModuleList(
            nn.Embedding(rows, stop - start, padding_idx=self.padding_token) for start, stop in bands
        )
        self.columns = _columns(bands)
        self.num_features = sum(right - left for left, right, _ in self.columns)
        self.starts_from_centroids = params.embedding == "centroids"
        self.embedding_rate = params.embedding_rate
        self.tables.requires_grad_(params.embedding_rate > 0)
        itself = torch.arange(rows)[None, :, None].repeat(len(bands), 1, 1)
        self.register_buffer("neighbours", itself, persistent=False)  # (codebook, word, near word)

    @torch.no_grad()
    def start_from(self, codebooks: list[np.ndarray]) -> None:
        """Learn from the codebooks, each (code, feature), which words are near each other, and start the tables at them.

        Random tables stay as they are. The special rows of the others start at zero: an average frame.
        """
        near = []
        for table, codebook in zip(self.tables, codebooks, strict=True):
            assert isinstance(table, nn.Embedding)
            words = torch.from_numpy(codebook)
            if self.starts_from_centroids:
                table.weight.zero_()
                table.weight[: len(codebook)] = words
            nearest = _nearest_words(words)
            special = torch.arange(len(words), table.num_embeddings)[:, None].expand(-1, nearest.shape[1])
            near.append(torch.cat([nearest, special]))
        self.neighbours = torch.stack(near)

    def embed(self, inputs: Tensor) -> Tensor:
        """Return the picture of the sentence, (batch, frame, feature), that augmentation may mix and mask."""
        vectors = [table(inputs[:, book]) for book, table in enumerate(self.tables)]
        parts = []
        for left, right, books in self.columns:
            shared = [vectors[book][:, :, left - start : right - start] for book, start in books]
            parts.append(shared[0] if len(shared) == 1 else torch.stack(shared).sum(0))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def start(model: SentenceClassifier, params: EmbeddingParams, codebooks: list[np.ndarray]) -> None:
    """Prepare a fresh model for training with the word vectors of its vocabulary."""
    model.start_from(codebooks)


def _columns(bands: Sequence[Sequence[int]]) -> list[tuple[int, int, list[tuple[int, int]]]]:
    """Cut the picture wherever a codebook begins or ends; return [from, to) and the codebooks there, each with its start."""
    edges = sorted({edge for band in bands for edge in band})
    columns = []
    for left, right in pairwise(edges):
        books = [(book, start) for book, (start, stop) in enumerate(bands) if start <= left and right <= stop]
        if books:
            columns.append((left, right, books))
    return columns


def _nearest_words(words: Tensor) -> Tensor:
    """Return for each word (word, feature) the ids (word, near word) of those nearest to it but itself."""
    count = min(NUM_NEIGHBOURS + 1, len(words))
    blocks = [words[first : first + _WORDS_AT_ONCE] for first in range(0, len(words), _WORDS_AT_ONCE)]
    return torch.cat([torch.cdist(block, words).topk(count, largest=False).indices[:, 1:] for block in blocks])
