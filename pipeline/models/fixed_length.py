"""Clips of one length: longer ones cut, shorter ones filled up."""

from torch import Tensor, nn


def fit_frames(x: Tensor, mask: Tensor | None, frames: int, fill: float) -> Tensor:
    """Return (B, T, F) as (B, frames, F): a longer clip is cut, a shorter one has the value `fill` from its end on."""
    if mask is not None:
        x = x.masked_fill(~mask[:, :, None], fill)
    if x.shape[1] > frames:  # asked, because a graph that is exported cannot cut to a length it does not know
        x = x[:, :frames]
    return nn.functional.pad(x, (0, 0, 0, frames - x.shape[1]), value=fill)
