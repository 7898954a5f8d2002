"""Stems of strided convolutions: `convolution` over time and features, `convolution_1d` over time alone.

With a few hundred clips, locality at the input is worth more than depth after it (Xiao et al., 2021, "Early Convolutions
Help Transformers See Better"). `convolution_1d` takes a frame's features as its channels, for tokens whose features have no
order along frequency, and for sequence models. All of a time step's channels and bands are projected to one position.
"""

import math
from typing import Literal

from torch import Tensor, nn

from pipeline.models.convolutions import ConvolutionStack, StackParams, TimeStackParams
from pipeline.models.parts import Input, Stem, StemParams
from pipeline.models.positions import SinusoidalPositions


class ConvolutionParams(StemParams, StackParams):
    kind: Literal["convolution"]

    @property
    def time_stride(self) -> int:
        return math.prod(stride for stride, _ in self.strides)


class TimeConvolutionParams(StemParams, TimeStackParams):
    kind: Literal["convolution_1d"]

    @property
    def time_stride(self) -> int:
        return math.prod(self.strides)


class _Convolution(Stem):
    def __init__(self, params: ConvolutionParams | TimeConvolutionParams, source: Input, width: int | None) -> None:
        super().__init__(params, source, width)
        assert width is not None  # checked by NetworkParams, since time steps are projected
        self.stack = ConvolutionStack(params, source.num_features, source.num_channels)
        self.stride, self.num_features = params.time_stride, width
        self.project = nn.Linear(self.stack.channels * self.stack.bands, width)
        self.positions = SinusoidalPositions(width)

    def forward(self, features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        maps, mask = self.stack(features, mask)
        positions = self.project(maps.permute(0, 2, 1, 3).flatten(2))
        return positions + self.positions(positions.shape[1]), mask


class Convolution(_Convolution):
    Params = ConvolutionParams


class TimeConvolution(_Convolution):
    Params = TimeConvolutionParams
