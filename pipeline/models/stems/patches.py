"""Patch stem of AST (Gong et al., 2021): one convolution over the feature map, kernel = patch, with any stride."""

from typing import Literal

import numpy as np
import torch
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from pipeline.models.parts import Input, Stem, StemParams, as_image, fit_frames
from pipeline.models.positions import LearnedParams, PositionsParams, SinusoidalPositions, new_table


class PatchesParams(StemParams):
    kind: Literal["patches"]
    frames: PositiveInt  # of a patch
    bands: PositiveInt  # of a patch
    stride_frames: PositiveInt
    stride_bands: PositiveInt
    positions: PositionsParams

    @property
    def pads(self) -> bool:
        return isinstance(self.positions, LearnedParams) and self.positions.shorter == "pad"

    @property
    def time_stride(self) -> int:
        return self.stride_frames

    @model_validator(mode="after")
    def _table_holds_a_patch(self) -> "PatchesParams":
        if isinstance(self.positions, LearnedParams) and self.positions.frames < self.frames:
            raise ValueError(
                f"positions.frames {self.positions.frames} must be at least frames {self.frames}: one patch"
            )
        return self


class Patches(Stem):
    """Stem of patches; with a learned table it reads at most `max_frames` frames, with padding exactly that many."""

    Params = PatchesParams
    max_frames_setting = "positions.frames"

    def __init__(self, params: PatchesParams, source: Input, width: int | None) -> None:
        super().__init__(params, source, width)
        assert width is not None  # checked by NetworkParams, since patches are projected
        self.num_image_channels = source.num_channels
        num_bands = source.num_features // source.num_channels
        if params.bands > num_bands:
            raise ValueError(f"stem.bands {params.bands}: expected at most the {num_bands} features of a frame")
        self.min_frames, self.stride, self.centre = params.frames, params.stride_frames, (params.frames - 1) / 2
        self.bands, self.stride_bands = params.bands, params.stride_bands
        size, stride = (params.frames, params.bands), (params.stride_frames, params.stride_bands)
        self.num_features = width
        self.project = nn.Conv2d(source.num_channels, width, size, stride)
        self.num_rows = (num_bands - params.bands) // params.stride_bands + 1
        self.fill: float | None = None  # padding value of shorter clips, up to the table's frames; None = no padding
        if isinstance(params.positions, LearnedParams):
            self.max_frames, self.has_position_table = params.positions.frames, True
            columns = (self.max_frames - self.min_frames) // self.stride + 1
            if params.pads:
                self.fill, self.num_positions = source.zero, self.num_rows * columns
            self.table = new_table(self.num_rows, columns, width)
        else:
            self.positions = SinusoidalPositions(width)
            self.rows = nn.Parameter(torch.randn((self.num_rows, width)) * 0.02)

    def forward(self, features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x = features
        if self.max_frames is not None:
            x, mask = self._fit(x, mask, self.max_frames)
        if x.shape[1] < self.min_frames:  # a clip shorter than a patch is padded to one
            x = nn.functional.pad(x, (0, 0, 0, self.min_frames - x.shape[1]))
        if mask is not None:
            x = x * _as(mask, x)
        grid = self.project(as_image(x, self.num_image_channels)).permute(0, 2, 3, 1)  # (B, time step, row, D)
        if self.max_frames is None:
            grid = grid + self.rows + self.positions(grid.shape[1])[:, None]
        else:  # a shorter clip gets the first time steps' positions, as in the training of published weights
            grid = grid + self.table[:, : grid.shape[1]].transpose(0, 1)
        if mask is not None:
            mask = self.real_time_steps(mask, grid.shape[1]).repeat_interleave(self.num_rows, dim=1)
        return grid.flatten(1, 2), mask

    def real_time_steps(self, mask: Tensor, num_time_steps: int) -> Tensor:
        """Return which time steps are real: those of patches without padding."""
        counts = ((mask.sum(1) - self.min_frames).clamp(min=0) // self.stride) + 1
        return torch.arange(num_time_steps, device=mask.device) < counts[:, None]

    def frames_of(self, num_time_steps: int, num_frames: int) -> np.ndarray:
        """Return which frames each time step's patches hold, (S, T) bool."""
        frame, starts = np.arange(num_frames), np.arange(num_time_steps)[:, None] * self.stride
        return np.asarray((frame >= starts) & (frame < starts + self.min_frames))

    def bands_of(self, num_features: int) -> np.ndarray:
        """Return which features each row's patches hold, (R, F) bool."""
        band, starts = np.arange(num_features), np.arange(self.num_rows)[:, None] * self.stride_bands
        return np.asarray((band >= starts) & (band < starts + self.bands))

    def _fit(self, x: Tensor, mask: Tensor | None, frames: int) -> tuple[Tensor, Tensor | None]:
        if self.fill is not None:
            return fit_frames(x, mask, frames, self.fill), None
        if x.shape[1] > frames:  # tested, because an exported graph cannot crop to an unknown length
            x, mask = x[:, :frames], None if mask is None else mask[:, :frames]
        return x, mask


def _as(mask: Tensor, x: Tensor) -> Tensor:
    """Return the mask as floats (B, T, 1), padded like x."""
    grown = nn.functional.pad(mask, (0, x.shape[1] - mask.shape[1]))
    return grown[:, :, None].to(x.dtype)
