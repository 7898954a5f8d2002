"""A small convolutional network: the baseline for transformers on a few hundred clips.

Log-mel frames, normalised, go through strided convolutions; each channel's mean and largest value over the clip's real
positions, along time and bands, go to a linear classifier.
"""

from typing import Any, Literal

from pydantic import PositiveFloat

from pipeline.models.classifier import PictureClassifier
from pipeline.models.convolutions import StackParams
from pipeline.models.encoder import NoEncoder
from pipeline.models.heads import Head
from pipeline.models.stems import Maps

READS = "frames"


class Params(StackParams):
    kind: Literal["cnn"]
    normalisation: Literal["corpus", "clip", "none"]  # corpus: mean and deviation of the fold's training clips
    deviations: PositiveFloat  # how many standard deviations make one unit


class ConvolutionalNetwork(PictureClassifier):
    """`model(frames, mask) -> logits`: (batch, frame, mel) and (batch, frame) bool in, (batch, class) out."""

    def __init__(self, params: Params, *, n_mels: int, num_classes: int) -> None:
        super().__init__()
        self.stem = Maps(params, n_mels)
        self.encoder = NoEncoder()
        self.head = Head("mean_max", self.stem.channels, num_classes)


def build(params: Params, input_facts: dict[str, Any], num_classes: int) -> ConvolutionalNetwork:
    """Build the model for an input described by `input_facts` (`n_mels`)."""
    return ConvolutionalNetwork(params, n_mels=input_facts["n_mels"], num_classes=num_classes)
