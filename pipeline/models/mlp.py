"""Perceptron on the flattened clip: every band of every frame is an input of its own, so a clip must have a fixed length.

A longer clip is cut and a shorter one filled up with silence, the front end's floor. Nothing is shared along time: what the
network has learned of a sound at one second it does not know at the next, which makes it the baseline for all that share.
"""

from itertools import pairwise
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from pipeline.models.classifier import PictureClassifier
from pipeline.models.stems import fit_frames
from pipeline.params import Params as BaseParams

READS = "frames"


class Params(BaseParams):
    kind: Literal["mlp"]
    normalisation: Literal["corpus", "none"]  # corpus: mean and deviation of the fold's training clips
    deviations: PositiveFloat  # how many standard deviations make one unit
    frames: PositiveInt  # of a clip, from its start
    hidden: list[PositiveInt]  # units of each layer before the classifier
    dropout: float = Field(ge=0, lt=1)  # behind each of them


class Perceptron(PictureClassifier):
    """`model(frames, mask) -> logits`: (batch, frame, mel) and (batch, frame) bool in, (batch, class) out."""

    def __init__(self, params: Params, *, n_mels: int, num_classes: int, silence: float) -> None:
        super().__init__()
        self.max_frames, self.silence = params.frames, silence
        widths = [params.frames * n_mels, *params.hidden]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.GELU(), nn.Dropout(params.dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))

    def classify(self, picture: Tensor, mask: Tensor | None) -> Tensor:
        clips = fit_frames(picture, mask, self.max_frames, self.silence)
        logits: Tensor = self.layers(clips.flatten(1))
        return logits


def build(params: Params, input_facts: dict[str, Any], num_classes: int) -> Perceptron:
    """Build the model for an input described by `input_facts`: `n_mels`, `log_floor` and `normalisation`."""
    normalisation = input_facts["normalisation"]
    unit = normalisation["deviations"] * max(normalisation["deviation"], 1e-6)
    silence = input_facts["log_floor"]
    if normalisation["kind"] == "corpus":
        silence = (silence - normalisation["mean"]) / unit
    return Perceptron(params, n_mels=input_facts["n_mels"], num_classes=num_classes, silence=silence)
