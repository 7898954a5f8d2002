"""Dequantise and normalise a batch on the device.

A clip travels as it is stored, a byte or two a value, and becomes float32 where it is used: reading does not wait for the
conversion, and half or a quarter of the bytes cross the bus.

Conventions: B batch, T frame. A normalisation stands in the metadata `input` of a model.
"""

import torch
from torch import Tensor

from pipeline.artifacts.spectrogram import FrontEndMetadata
from pipeline.models.base import SMALLEST_STD, Normalisation, normalisation_unit


def normalise(stored: Tensor, mask: Tensor | None, front_end: FrontEndMetadata, normalisation: Normalisation) -> Tensor:
    """Return (B, T, mel) stored values as float32, in the front end's units and then normalised; 0 behind a clip's end."""
    frames = stored.to(torch.float32)
    if frames is stored:
        frames = stored.clone()  # what follows works in place
    if front_end.get("dtype") == "uint8":
        frames.mul_(front_end["scale"]).add_(front_end["offset"])
    if normalisation["kind"] == "clip":
        mean, std = _statistics(frames, mask)
        frames.sub_(mean).div_(normalisation["std_scale"] * std.clamp(min=SMALLEST_STD))
    elif normalisation["kind"] != "none":
        frames.sub_(normalisation["mean"]).div_(normalisation_unit(normalisation))
    return frames if mask is None else frames.masked_fill_(~mask[:, :, None], 0.0)


def _statistics(frames: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each clip's own values, (B, 1, 1) each."""
    real = torch.ones_like(frames[:, :, :1]) if mask is None else mask[:, :, None].to(frames.dtype)
    count = real.sum((1, 2), keepdim=True) * frames.shape[2]
    mean = (frames * real).sum((1, 2), keepdim=True) / count
    square = ((frames - mean) * real).square().sum((1, 2), keepdim=True) / count
    return mean, square.sqrt()
