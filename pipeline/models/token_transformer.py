"""Token transformer: the clip as a sentence of audio words, read by the same encoder as the patches are.

How words become vectors: `pipeline/models/sentence.py`. The whole clip is in context: nothing is cut off. With a random
embedding, the stem `linear` and the pooling `class` it is BERT's encoder (Devlin et al., 2019), with a real class token.
"""

from typing import Any, Literal

from pipeline.models.encoder import Encoder, EncoderParams
from pipeline.models.heads import Head, Pooling
from pipeline.models.sentence import EmbeddingParams, SentenceClassifier
from pipeline.models.sentence import start as start
from pipeline.models.stems import StemParams, build_stem

READS = "tokens"
PRETRAINS = True  # see pipeline/training/word_predictor.py


class Params(EmbeddingParams, EncoderParams):
    kind: Literal["token_transformer"]
    stem: StemParams
    pooling: Pooling


class TokenTransformer(SentenceClassifier):
    """Sentence, stem, transformer encoder, head."""

    def __init__(self, params: Params, input_facts: dict[str, Any], num_classes: int) -> None:
        super().__init__(params, input_facts)
        self.stem = build_stem(params.stem, num_features=self.num_features, width=params.width)
        self.encoder = Encoder(params)
        self.head = Head(params.pooling, params.width, num_classes)


def build(params: Params, input_facts: dict[str, Any], num_classes: int) -> TokenTransformer:
    """Build the model for a vocabulary described by `input_facts` (`vocabulary_size`, `bands`)."""
    return TokenTransformer(params, input_facts, num_classes)
