"""Stems: how a (frame, feature) picture becomes the positions that the encoder sees.

`patches` is AST's (Gong et al., 2021): one convolution over the picture, kernel = patch, with any stride.
`convolution` is a stack of strided convolutions before the encoder (Xiao et al., 2021, "Early Convolutions Help
Transformers See Better"): with a few hundred clips, locality at the input is worth more than depth behind it.
`convolution_1d` is such a stack over time alone, with a frame's features as its channels: for words without a place among
bands, and for sequence models. Its weights are learned and stored with the model, like all others.
`linear` hands each frame on as it is.

Conventions: B batch, T frame, F feature (mel band, or what an embedding made of a token), C channel, N position, D width.
Every stem maps (B, T, F) and a mask (B, T) to positions (B, N, D) and their mask (B, N). Padding never leaks: whatever
stands behind a clip's last frame, its own positions come out the same. Positions come column by column in time, each of
`num_rows` positions from low bands to high; column t is centred on frame `stride` * t + `centre`, and `real_columns` says
which columns lie within a clip.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from pipeline.models.convolutions import ConvolutionStack, StackParams, TimeStackParams
from pipeline.models.positions import LearnedParams, Positions, PositionsParams, new_table
from pipeline.params import Params


class PatchesParams(Params):
    kind: Literal["patches"]
    frames: PositiveInt  # of a patch
    bands: PositiveInt  # of a patch
    stride_frames: PositiveInt
    stride_bands: PositiveInt
    positions: PositionsParams

    @model_validator(mode="after")
    def _table_holds_a_patch(self) -> "PatchesParams":
        if isinstance(self.positions, LearnedParams) and self.positions.frames < self.frames:
            raise ValueError(
                f"positions.frames {self.positions.frames} must be at least frames {self.frames}: one patch"
            )
        return self


class ConvolutionParams(StackParams):
    kind: Literal["convolution"]


class TimeConvolutionParams(TimeStackParams):
    kind: Literal["convolution_1d"]


class LinearParams(Params):
    kind: Literal["linear"]


StemParams = Annotated[
    PatchesParams | ConvolutionParams | TimeConvolutionParams | LinearParams, Field(discriminator="kind")
]


def build_stem(params: StemParams, *, num_features: int, width: int, silence: float = 0.0) -> nn.Module:
    """Build the stem for pictures of `num_features` features a frame, in which a zero of the front end is `silence`."""
    if isinstance(params, PatchesParams):
        return Patches(params, num_features, width, silence)
    if isinstance(params, LinearParams):
        return Linear(num_features, width)
    return Convolution(params, num_features, width)


class Patches(nn.Module):
    """With a learned table it reads at most `max_frames` frames, and with `pad` always as many."""

    def __init__(self, params: PatchesParams, num_features: int, width: int, silence: float) -> None:
        super().__init__()
        if params.bands > num_features:
            raise ValueError(f"stem.bands {params.bands}: expected at most the {num_features} features of a frame")
        self.frames, self.stride, self.centre = params.frames, params.stride_frames, (params.frames - 1) / 2
        size, stride = (params.frames, params.bands), (params.stride_frames, params.stride_bands)
        self.project = nn.Conv2d(1, width, size, stride)
        self.num_rows = (num_features - params.bands) // params.stride_bands + 1
        self.max_frames: int | None = None
        self.silence: float | None = None  # what fills a shorter clip up to the table's frames; None = it stays short
        if isinstance(params.positions, LearnedParams):
            self.max_frames = params.positions.frames
            self.silence = silence if params.positions.shorter == "pad" else None
            self.table = new_table(self.num_rows, (self.max_frames - self.frames) // self.stride + 1, width)
        else:
            self.positions = Positions(width)
            self.rows = nn.Parameter(torch.randn((self.num_rows, width)) * 0.02)

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.max_frames is not None:
            x, mask = self._fit(x, mask, self.max_frames)
        if x.shape[1] < self.frames:  # a clip shorter than a patch still makes one
            x = nn.functional.pad(x, (0, 0, 0, self.frames - x.shape[1]))
        if mask is not None:
            x = x * _as(mask, x)
        grid = self.project(x[:, None]).permute(0, 2, 3, 1)  # (B, column, row, D)
        if self.max_frames is None:
            grid = grid + self.rows + self.positions(grid.shape[1])[:, None]
        else:  # a shorter clip takes the first columns, where published weights have met it before its padding
            grid = grid + self.table[:, : grid.shape[1]].transpose(0, 1)
        if mask is not None:
            mask = self.real_columns(mask, grid.shape[1]).repeat_interleave(self.num_rows, dim=1)
        return grid.flatten(1, 2), mask

    def real_columns(self, mask: Tensor, num_columns: int) -> Tensor:
        """Say for frames (B, T) which of the columns are the clip's: patches inside it, that have seen no padding."""
        counts = ((mask.sum(1) - self.frames).clamp(min=0) // self.stride) + 1
        return torch.arange(num_columns, device=mask.device) < counts[:, None]

    def _fit(self, x: Tensor, mask: Tensor | None, frames: int) -> tuple[Tensor, Tensor | None]:
        if self.silence is not None:
            return fit_frames(x, mask, frames, self.silence), None
        if x.shape[1] > frames:  # asked, because a graph that is exported cannot cut to a length it does not know
            x, mask = x[:, :frames], None if mask is None else mask[:, :frames]
        return x, mask


class Convolution(ConvolutionStack):
    def __init__(self, params: ConvolutionParams | TimeConvolutionParams, num_features: int, width: int) -> None:
        super().__init__(params, num_features)
        self.num_rows, self.stride, self.centre = 1, math.prod(self.strides), 0.0
        self.project = nn.Linear(self.channels * self.bands, width)
        self.positions = Positions(width)

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        maps, mask = super().forward(x, mask)
        positions = self.project(maps.permute(0, 2, 1, 3).flatten(2))
        return positions + self.positions(positions.shape[1]), mask

    def real_columns(self, mask: Tensor, num_columns: int) -> Tensor:
        return mask[:, :: self.stride]


class Frames(nn.Module):
    """No stem: each frame is a position, and does not know where it stands. For models that are not asked."""

    num_rows, stride, centre = 1, 1, 0.0

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return x, mask

    def real_columns(self, mask: Tensor, num_columns: int) -> Tensor:
        return mask


class Linear(Frames):
    def __init__(self, num_features: int, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(num_features, width)
        self.positions = Positions(width)

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        positions = self.project(x)
        return positions + self.positions(positions.shape[1]), mask


class Maps(ConvolutionStack):
    """Convolutions whose every value along time and bands is a position, of as many features as there are channels."""

    def __init__(self, params: StackParams, num_features: int) -> None:
        super().__init__(params, num_features)
        self.num_rows, self.stride, self.centre = self.bands, math.prod(self.strides), 0.0

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        maps, mask = super().forward(x, mask)
        if mask is not None:
            mask = mask.repeat_interleave(self.bands, dim=1)
        return maps.permute(0, 2, 3, 1).flatten(1, 2), mask

    def real_columns(self, mask: Tensor, num_columns: int) -> Tensor:
        return mask[:, :: self.stride]


def fit_frames(x: Tensor, mask: Tensor | None, frames: int, silence: float) -> Tensor:
    """Return (B, T, F) as (B, frames, F): a longer clip is cut, a shorter one filled up with `silence` from its end on."""
    if mask is not None:
        x = x.masked_fill(~mask[:, :, None], silence)
    if x.shape[1] > frames:  # asked, because a graph that is exported cannot cut to a length it does not know
        x = x[:, :frames]
    return nn.functional.pad(x, (0, 0, 0, frames - x.shape[1]), value=silence)


def _as(mask: Tensor, x: Tensor) -> Tensor:
    """Return the mask as numbers (B, T, 1), padded like x."""
    grown = nn.functional.pad(mask, (0, x.shape[1] - mask.shape[1]))
    return grown[:, :, None].to(x.dtype)
