"""Cropping and padding of clips to a fixed length."""

from torch import Tensor, nn


def fit_frames(x: Tensor, mask: Tensor | None, frames: int, fill: float) -> Tensor:
    """Return (B, T, F) as (B, frames, F): a longer clip is cropped, a shorter one padded with `fill`."""
    if mask is not None:
        x = x.masked_fill(~mask[:, :, None], fill)
    if x.shape[1] > frames:  # tested, because an exported graph cannot crop to an unknown length
        x = x[:, :frames]
    return nn.functional.pad(x, (0, 0, 0, frames - x.shape[1]), value=fill)
