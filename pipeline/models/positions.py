"""Position embeddings: sinusoidal, or a learned table.

`sinusoidal` is the table of Vaswani et al., 2017, times a learned gain, for any length. `learned` is AST's: a row for every
patch of clips of a given length, so that published tables fit. A table of another grid is cropped or resized.

Conventions: N position, D width; a grid is (row, column, D): rows are bands from low to high, columns time steps.
"""

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from pipeline.params import Params


class SinusoidalParams(Params):
    kind: Literal["sinusoidal"]


class LearnedParams(Params):
    kind: Literal["learned"]
    frames: PositiveInt  # of the table; of a longer clip the first ones are read
    shorter: Literal["mask", "pad"]  # padding of a shorter clip: none, or zeros in the front end's units as in AST


PositionsParams = Annotated[SinusoidalParams | LearnedParams, Field(discriminator="kind")]


class SinusoidalPositions(nn.Module):
    """The sinusoidal table times a learned gain.

    The initial gain is small, like the values of a learned table, so that positions do not dominate the stem's output.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.gain = nn.Parameter(torch.tensor(0.03))

    def forward(self, positions: int) -> Tensor:
        """Return the table (position, width)."""
        rates = torch.exp(torch.arange(0, self.width, 2, device=self.gain.device) * (-math.log(10_000.0) / self.width))
        angles = torch.arange(positions, device=self.gain.device)[:, None] * rates
        return self.gain * torch.cat([angles.sin(), angles.cos()], dim=1)


def new_table(*shape: int) -> nn.Parameter:
    """Return a learned table initialised as in AST and ViT: normal, standard deviation 0.02, truncated at 2."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02))


def fit_grid(grid: Tensor, rows: int, columns: int) -> Tensor:
    """Crop or resize a learned grid (row, column, D) to (rows, columns, D), first in time and then in frequency.

    AST's rule for ImageNet's and its own tables (Gong et al., 2021, section 2.2, and its code): along an axis that gets
    shorter the middle is kept, from old // 2 - new // 2 on; along one that gets longer it is resized bilinearly. ImageNet's
    grids are square, AudioSet's is 12 rows of 101 columns.
    """
    return _fit_axis(_fit_axis(grid, 1, columns), 0, rows)


def _fit_axis(grid: Tensor, axis: int, size: int) -> Tensor:
    old = grid.shape[axis]
    if size <= old:
        return grid.narrow(axis, old // 2 - size // 2, size)
    shape = [size if i == axis else grid.shape[i] for i in (0, 1)]
    resized = F.interpolate(grid.permute(2, 0, 1)[None], shape, mode="bilinear", align_corners=False)
    return resized[0].permute(1, 2, 0)
