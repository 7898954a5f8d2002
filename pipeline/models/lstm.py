"""LSTM over words: the clip's sentence, read forward and backward.

The sequence model of the public attempt at audio words, with lengths that are the clips' own.
"""

from typing import Any, Literal

from pipeline.models.heads import Head
from pipeline.models.recurrent import Recurrent, RecurrentParams
from pipeline.models.sentence import EmbeddingParams, SentenceClassifier
from pipeline.models.sentence import start as start
from pipeline.models.stems import build_stem

READS = "tokens"


class Params(EmbeddingParams, RecurrentParams):
    kind: Literal["lstm"]


class TokenLstm(SentenceClassifier):
    """Sentence, stem, bidirectional LSTM, head."""

    def __init__(self, params: Params, input_facts: dict[str, Any], num_classes: int) -> None:
        super().__init__(params, input_facts)
        self.stem = build_stem(params.stem, num_features=self.num_features, width=params.width)
        self.encoder = Recurrent(params)
        self.head = Head(params.pooling, params.width, num_classes)


def build(params: Params, input_facts: dict[str, Any], num_classes: int) -> TokenLstm:
    """Build the model for a vocabulary described by `input_facts` (`vocabulary_size`, `bands`)."""
    return TokenLstm(params, input_facts, num_classes)
