"""Pooling of positions over the real ones of a clip.

Conventions: B batch, N position, D width; masks (B, N) are bool, True = real, None = all real.
"""

import torch
from torch import Tensor


def mean_pool(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean (B, D) of (B, N, D) over the real positions."""
    if mask is None:
        return x.mean(1)
    weights = mask[:, :, None].to(x.dtype)
    return (x * weights).sum(1) / weights.sum(1).clamp(min=1)


def max_pool(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return the maximum (B, D) of (B, N, D) over the real positions."""
    largest = x if mask is None else x.masked_fill(~mask[:, :, None], -torch.inf)
    return largest.amax(1)
