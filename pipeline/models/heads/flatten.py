"""Head: a multilayer perceptron on all positions of a clip side by side, so that every clip must have as many.

Nothing is shared along time: what it has learned of a sound at one second it does not know at the next, which makes it the
baseline for all that share.
"""

from itertools import pairwise
from typing import Literal

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from pipeline.models.parts import Encoder, Head, HeadParams, Stem


class FlattenParams(HeadParams):
    kind: Literal["flatten"]
    hidden: list[PositiveInt]  # units of each layer before the classifier
    dropout: float = Field(ge=0, lt=1)  # behind each of them


class Flatten(Head):
    Params = FlattenParams
    needs_fixed_length = True
    supports_patchout = False

    def __init__(self, params: FlattenParams, stem: Stem, encoder: Encoder, num_classes: int) -> None:
        super().__init__(params, stem, encoder, num_classes)
        assert encoder.num_positions is not None  # NetworkParams has seen to it
        widths = [encoder.num_positions * encoder.num_features, *params.hidden]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.GELU(), nn.Dropout(params.dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        logits: Tensor = self.layers(x.flatten(1))
        return logits
