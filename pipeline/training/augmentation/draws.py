"""Random draws of augmentation: on the CPU, so that they are the same on every device, then moved."""

from collections.abc import Sequence

import torch
from torch import Tensor


def draw_rows(batch: int, probability: float) -> Tensor:
    """Return the rows of a batch that an augmentation is applied to, each with this probability: (row,) int64.

    At probability 0 nothing is drawn from the random generator.
    """
    if probability == 0:
        return torch.empty(0, dtype=torch.int64)
    return (torch.rand(batch) < probability).nonzero()[:, 0]


def draw_uniform(ends: Sequence[float], *shape: int) -> Tensor:
    """Return numbers of a uniform distribution between two ends."""
    low, high = ends
    return low + (high - low) * torch.rand(shape)
