"""Flattening head: a multilayer perceptron on the concatenated positions of a clip, for clips of one length.

No weights are shared along time, which makes it the baseline for models that share them.
"""

from itertools import pairwise
from typing import Literal

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from pipeline.models.parts import Encoder, Head, HeadParams, Stem


class FlattenParams(HeadParams):
    kind: Literal["flatten"]
    hidden: list[PositiveInt]  # units of each layer before the classifier
    dropout: float = Field(ge=0, lt=1)  # after each of them


class Flatten(Head):
    Params = FlattenParams
    needs_fixed_length = True
    supports_patchout = False

    def __init__(self, params: FlattenParams, stem: Stem, encoder: Encoder, num_classes: int) -> None:
        super().__init__(params, stem, encoder, num_classes)
        assert encoder.num_positions is not None  # checked by NetworkParams
        widths = [encoder.num_positions * encoder.num_features, *params.hidden]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.GELU(), nn.Dropout(params.dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))
        self.class_weights = (f"layers.{len(layers)}.weight", f"layers.{len(layers)}.bias")

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        logits: Tensor = self.layers(x.flatten(1))
        return logits
