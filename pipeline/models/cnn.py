"""A small convolutional network: the baseline for transformers on a few hundred clips.

Log-mel frames, normalised, go through strided convolutions; each channel's mean and largest value over the clip's real
positions, along time and bands, go to a linear classifier.
"""

from typing import Any, Literal

from pydantic import PositiveFloat
from torch import Tensor

from pipeline.models.classifier import PictureClassifier
from pipeline.models.convolutions import ConvolutionStack, StackParams
from pipeline.models.heads import Head

READS = "frames"


class Params(StackParams):
    kind: Literal["cnn"]
    normalisation: Literal["corpus", "clip", "none"]  # corpus: mean and deviation of the fold's training clips
    deviations: PositiveFloat  # how many standard deviations make one unit


class ConvolutionalNetwork(PictureClassifier):
    """`model(frames, mask) -> logits`: (batch, frame, mel) and (batch, frame) bool in, (batch, class) out."""

    def __init__(self, params: Params, *, n_mels: int, num_classes: int) -> None:
        super().__init__()
        self.stack = ConvolutionStack(params, n_mels)
        self.head = Head("mean_max", self.stack.channels, num_classes)

    def classify(self, picture: Tensor, mask: Tensor | None) -> Tensor:
        maps, mask = self.stack(picture, mask)
        if mask is not None:
            mask = mask.repeat_interleave(self.stack.bands, dim=1)
        logits: Tensor = self.head(maps.permute(0, 2, 3, 1).flatten(1, 2), mask)
        return logits


def build(params: Params, input_facts: dict[str, Any], num_classes: int) -> ConvolutionalNetwork:
    """Build the model for an input described by `input_facts` (`n_mels`)."""
    return ConvolutionalNetwork(params, n_mels=input_facts["n_mels"], num_classes=num_classes)
