"""Bag of embeddings: the mean of a clip's word vectors, and a linear classifier; no order, no context.

With learned vectors (`embedding: random`) it is fastText's classifier (Joulin et al., 2017, arXiv 1607.01759).
"""

from typing import Any, Literal

from pipeline.models.encoder import NoEncoder
from pipeline.models.heads import Head
from pipeline.models.sentence import EmbeddingParams, SentenceClassifier
from pipeline.models.sentence import start as start
from pipeline.models.stems import Frames

READS = "tokens"


class Params(EmbeddingParams):
    kind: Literal["bag_of_embeddings"]


class BagOfEmbeddings(SentenceClassifier):
    """Sentence, mean over its real frames, classifier."""

    def __init__(self, params: Params, input_facts: dict[str, Any], num_classes: int) -> None:
        super().__init__(params, input_facts)
        self.stem, self.encoder = Frames(), NoEncoder()
        self.head = Head("mean", self.num_features, num_classes)


def build(params: Params, input_facts: dict[str, Any], num_classes: int) -> BagOfEmbeddings:
    """Build the model for a vocabulary described by `input_facts` (`vocabulary_size`, `bands`)."""
    return BagOfEmbeddings(params, input_facts, num_classes)
