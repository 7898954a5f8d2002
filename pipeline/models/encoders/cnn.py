"""Convolutional encoder: strided 2D convolutions over time and features; each output cell is a position.

With a head that pools mean and maximum, it is the baseline for transformers on a few hundred clips.
"""

import math
from typing import Literal

from torch import Tensor

from pipeline.models.convolutions import ConvolutionStack, StackParams
from pipeline.models.parts import Encoder, EncoderParams, Stem


class CnnParams(EncoderParams, StackParams):
    kind: Literal["cnn"]

    @property
    def time_stride(self) -> int:
        return math.prod(stride for stride, _ in self.strides)


class Cnn(Encoder):
    """Encoder of the feature map (B, T, F); its rows are the features after the strides."""

    Params = CnnParams
    keeps_positions = supports_patchout = False
    has_feature_maps = True

    def __init__(self, params: CnnParams, stem: Stem) -> None:
        super().__init__(params, stem)
        self.stack = ConvolutionStack(params, stem.num_features, stem.num_channels)
        self.num_features, self.num_rows = self.stack.channels, self.stack.bands
        self.time_stride = params.time_stride
        self.stride = stem.stride * self.time_stride
        self.map_strides = self.stride, math.prod(bands for _, bands in params.strides)

    def forward(self, x: Tensor, mask: Tensor | None, num_wanted: int | None = None) -> tuple[Tensor, Tensor | None]:
        return self.positions_of(*self.feature_maps(x, mask))

    def feature_maps(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        maps: tuple[Tensor, Tensor | None] = self.stack(x, mask)
        return maps

    def positions_of(self, maps: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if mask is not None:
            mask = mask.repeat_interleave(self.num_rows, dim=1)
        return maps.permute(0, 2, 3, 1).flatten(1, 2), mask

    def real_time_steps(self, real: Tensor) -> Tensor:
        return real[:, :: self.time_stride]
