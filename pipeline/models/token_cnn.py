"""The small convolutional network on the picture of a sentence: what `cnn` is to frames, to words."""

from typing import Any, Literal

from pipeline.models.convolutions import StackParams
from pipeline.models.encoder import NoEncoder
from pipeline.models.heads import Head
from pipeline.models.sentence import EmbeddingParams, SentenceClassifier
from pipeline.models.sentence import start as start
from pipeline.models.stems import Maps

READS = "tokens"


class Params(EmbeddingParams, StackParams):
    kind: Literal["token_cnn"]


class TokenCnn(SentenceClassifier):
    """Sentence, convolutions, head."""

    def __init__(self, params: Params, input_facts: dict[str, Any], num_classes: int) -> None:
        super().__init__(params, input_facts)
        self.stem = Maps(params, self.num_features)
        self.encoder = NoEncoder()
        self.head = Head("mean_max", self.stem.channels, num_classes)


def build(params: Params, input_facts: dict[str, Any], num_classes: int) -> TokenCnn:
    """Build the model for a vocabulary described by `input_facts` (`vocabulary_size`, `bands`)."""
    return TokenCnn(params, input_facts, num_classes)
