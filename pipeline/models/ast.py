"""Audio spectrogram transformer: the spectrogram as a picture (Gong, Chung and Glass, 2021, arXiv 2104.01778).

Log-mel frames, normalised, go through a stem (AST's patches with any strides, or early convolutions) into the encoder.
"""

from typing import Any, Literal

from pydantic import PositiveFloat

from pipeline.models.classifier import PictureClassifier
from pipeline.models.encoder import Encoder, EncoderParams
from pipeline.models.heads import Head, Pooling
from pipeline.models.stems import StemParams, build_stem

READS = "frames"


class Params(EncoderParams):
    kind: Literal["ast"]
    normalisation: Literal["corpus", "clip", "none"]  # corpus: mean and deviation of the fold's training clips
    deviations: PositiveFloat  # how many standard deviations make one unit; AST takes 2
    stem: StemParams
    pooling: Pooling


class SpectrogramTransformer(PictureClassifier):
    """`model(frames, mask) -> logits`: (batch, frame, mel) and (batch, frame) bool in, (batch, class) out."""

    def __init__(self, params: Params, *, n_mels: int, num_classes: int) -> None:
        super().__init__()
        self.stem = build_stem(params.stem, num_features=n_mels, width=params.width)
        self.encoder = Encoder(params)
        self.head = Head(params.pooling, params.width, num_classes)


def build(params: Params, input_facts: dict[str, Any], num_classes: int) -> SpectrogramTransformer:
    """Build the model for an input described by `input_facts` (`n_mels`)."""
    return SpectrogramTransformer(params, n_mels=input_facts["n_mels"], num_classes=num_classes)
