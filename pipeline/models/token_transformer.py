"""Token transformer: the clip as a sentence of audio words, read by the same encoder as the patches are.

A word enters as a vector. With `embedding: centroids` the table is the vocabulary's codebook, so that words which sound
alike look alike: taken as a start and moved by a small part of the learning rate (`embedding_rate`; at the full rate the
table overfits, LOG.md 2026-11-21), or kept as it is (0). Several codebooks stand side by side, each in its own bands. With
`random` the table starts from noise and codebooks are summed. The whole clip is in context: nothing is cut off.
"""

from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from pipeline.artifacts.vocabulary import NUM_SPECIAL_TOKENS
from pipeline.models.classifier import Transformer
from pipeline.models.encoder import Encoder, EncoderParams
from pipeline.models.heads import Head, Pooling
from pipeline.models.stems import StemParams, build_stem

READS = "tokens"

NUM_NEIGHBOURS = 8  # words that word noise chooses among


class Params(EncoderParams):
    kind: Literal["token_transformer"]
    embedding: Literal["centroids", "random"]
    embedding_rate: float = Field(ge=0, le=1)  # learning rate of the table over that of the rest; 0 keeps it
    embedding_width: PositiveInt  # of a random table; centroids bring their own
    stem: StemParams
    pooling: Pooling


class TokenTransformer(Transformer):
    """`model(tokens, mask) -> logits`: (batch, codebook, frame) int64, (batch, frame) bool in, (batch, class) out."""

    def __init__(self, params: Params, *, size: int, widths: list[int], num_classes: int) -> None:
        super().__init__()
        self.side_by_side = params.embedding == "centroids"
        self.padding_token, self.mask_token = size, size + 1
        if not self.side_by_side:
            widths = [params.embedding_width] * len(widths)
        # The padding row stays zero for good: `padding_idx` takes it out of the gradient.
        rows = size + NUM_SPECIAL_TOKENS
        self.tables = nn.ModuleList(nn.Embedding(rows, width, padding_idx=self.padding_token) for width in widths)
        num_features = sum(widths) if self.side_by_side else widths[0]
        self.stem = build_stem(params.stem, num_features=num_features, width=params.width)
        self.encoder = Encoder(params)
        self.head = Head(params.pooling, params.width, num_classes)
        self.embedding_rate = params.embedding_rate
        self.tables.requires_grad_(params.embedding_rate > 0)
        itself = torch.arange(rows)[None, :, None].repeat(len(widths), 1, 1)
        self.register_buffer("neighbours", itself, persistent=False)  # (codebook, word, near word)

    @torch.no_grad()
    def start_from(self, codebooks: list[np.ndarray]) -> None:
        """Start the tables at the codebooks, each (code, feature), and the special rows at zero: an average frame."""
        near = []
        for table, codebook in zip(self.tables, codebooks, strict=True):
            assert isinstance(table, nn.Embedding)
            table.weight.zero_()
            words = torch.from_numpy(codebook)
            table.weight[: len(codebook)] = words
            nearest = torch.cdist(words, words).topk(min(NUM_NEIGHBOURS + 1, len(words)), largest=False).indices[:, 1:]
            special = torch.arange(len(words), table.num_embeddings)[:, None].expand(-1, nearest.shape[1])
            near.append(torch.cat([nearest, special]))
        self.neighbours = torch.stack(near)

    def embed(self, inputs: Tensor) -> Tensor:
        """Return the picture of the sentence, (batch, frame, feature), that augmentation may mix and mask."""
        vectors = [table(inputs[:, book]) for book, table in enumerate(self.tables)]
        return torch.cat(vectors, dim=2) if self.side_by_side else torch.stack(vectors).sum(0)


def build(params: Params, input_facts: dict[str, Any], num_classes: int) -> TokenTransformer:
    """Build the model for a vocabulary described by `input_facts` (`vocabulary_size`, `bands`)."""
    widths = [stop - start for start, stop in input_facts["bands"]]
    return TokenTransformer(params, size=input_facts["vocabulary_size"], widths=widths, num_classes=num_classes)


def start(model: TokenTransformer, params: Params, codebooks: list[np.ndarray]) -> None:
    """Prepare a fresh model for training: embeddings from the codebooks' centroids when asked for."""
    if params.embedding == "centroids":
        model.start_from(codebooks)
