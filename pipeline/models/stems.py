"""Stems: how a (frame, feature) picture becomes the positions that the encoder sees.

`patches` is AST's (Gong et al., 2021): one convolution over the picture, kernel = patch, with any stride.
`convolution` is a stack of strided convolutions before the encoder (Xiao et al., 2021, "Early Convolutions Help
Transformers See Better"): with a few hundred clips, locality at the input is worth more than depth behind it.
`linear` hands each frame on as it is.

Conventions: B batch, T frame, F feature (mel band, or what an embedding made of a token), C channel, N position, D width.
Every stem maps (B, T, F) and a mask (B, T) to positions (B, N, D) and their mask (B, N). Padding never leaks: whatever
stands behind a clip's last frame, its own positions come out the same.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from pipeline.models.convolutions import ConvolutionStack, StackParams
from pipeline.models.encoder import Positions
from pipeline.params import Params


class PatchesParams(Params):
    kind: Literal["patches"]
    frames: PositiveInt  # of a patch
    bands: PositiveInt  # of a patch
    stride_frames: PositiveInt
    stride_bands: PositiveInt


class ConvolutionParams(StackParams):
    kind: Literal["convolution"]


class LinearParams(Params):
    kind: Literal["linear"]


StemParams = Annotated[PatchesParams | ConvolutionParams | LinearParams, Field(discriminator="kind")]


def build_stem(params: StemParams, *, num_features: int, width: int) -> nn.Module:
    """Build the stem for pictures of `num_features` features a frame."""
    if isinstance(params, PatchesParams):
        return Patches(params, num_features, width)
    if isinstance(params, ConvolutionParams):
        return Convolution(params, num_features, width)
    return Linear(params, num_features, width)


class Patches(nn.Module):
    def __init__(self, params: PatchesParams, num_features: int, width: int) -> None:
        super().__init__()
        if params.bands > num_features:
            raise ValueError(f"stem.bands {params.bands}: expected at most the {num_features} features of a frame")
        self.frames, self.stride = params.frames, params.stride_frames
        size, stride = (params.frames, params.bands), (params.stride_frames, params.stride_bands)
        self.project = nn.Conv2d(1, width, size, stride)
        self.positions = Positions(width)
        self.rows = nn.Parameter(torch.randn((num_features - params.bands) // params.stride_bands + 1, width) * 0.02)

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if x.shape[1] < self.frames:  # a clip shorter than a patch still makes one
            x = nn.functional.pad(x, (0, 0, 0, self.frames - x.shape[1]))
        if mask is not None:
            x = x * _as(mask, x)
        grid = self.project(x[:, None]).permute(0, 2, 3, 1)  # (B, time, row, D)
        grid = grid + self.rows + self.positions(grid.shape[1])[:, None]
        if mask is not None:
            # Only patches that lie inside the clip are real, so none of them has seen padding.
            counts = ((mask.sum(1) - self.frames).clamp(min=0) // self.stride) + 1
            real = torch.arange(grid.shape[1], device=x.device) < counts[:, None]
            mask = real.repeat_interleave(grid.shape[2], dim=1)
        return grid.flatten(1, 2), mask


class Convolution(ConvolutionStack):
    def __init__(self, params: ConvolutionParams, num_features: int, width: int) -> None:
        super().__init__(params, num_features)
        self.project = nn.Linear(self.channels * self.bands, width)
        self.positions = Positions(width)

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        maps, mask = super().forward(x, mask)
        positions = self.project(maps.permute(0, 2, 1, 3).flatten(2))
        return positions + self.positions(positions.shape[1]), mask


class Linear(nn.Module):
    def __init__(self, params: LinearParams, num_features: int, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(num_features, width)
        self.positions = Positions(width)

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        positions = self.project(x)
        return positions + self.positions(positions.shape[1]), mask


def _as(mask: Tensor, x: Tensor) -> Tensor:
    """Return the mask as numbers (B, T, 1), padded like x."""
    grown = nn.functional.pad(mask, (0, x.shape[1] - mask.shape[1]))
    return grown[:, :, None].to(x.dtype)
