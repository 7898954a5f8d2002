"""LSTM over frames: log-mel frames in the place of embedded words, all else as in `lstm`.

The experiment that says what words cost: same network, same clips, no vocabulary.
"""

from typing import Any, Literal

from pydantic import PositiveFloat

from pipeline.models.classifier import PictureClassifier
from pipeline.models.heads import Head
from pipeline.models.recurrent import Recurrent, RecurrentParams
from pipeline.models.stems import build_stem

READS = "frames"


class Params(RecurrentParams):
    kind: Literal["frames_lstm"]
    normalisation: Literal["corpus", "clip", "none"]  # corpus: mean and deviation of the fold's training clips
    deviations: PositiveFloat  # how many standard deviations make one unit


class FramesLstm(PictureClassifier):
    """`model(frames, mask) -> logits`: (batch, frame, mel) and (batch, frame) bool in, (batch, class) out."""

    def __init__(self, params: Params, *, n_mels: int, num_classes: int) -> None:
        super().__init__()
        self.stem = build_stem(params.stem, num_features=n_mels, width=params.width)
        self.encoder = Recurrent(params)
        self.head = Head(params.pooling, params.width, num_classes)


def build(params: Params, input_facts: dict[str, Any], num_classes: int) -> FramesLstm:
    """Build the model for an input described by `input_facts` (`n_mels`)."""
    return FramesLstm(params, n_mels=input_facts["n_mels"], num_classes=num_classes)
