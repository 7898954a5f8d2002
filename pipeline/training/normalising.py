"""Dequantise and normalise a batch on the device.

Clips are moved as they are stored, one or two bytes per value, and become float32 on the device: reading does not wait for
the conversion, and half or a quarter of the bytes are transferred.

Conventions: B batch, T frame. A normalisation is part of the metadata `input` of a model.
"""

import torch
from torch import Tensor

from pipeline.artifacts.model import Normalisation
from pipeline.artifacts.spectrogram import SpectrogramMetadata
from pipeline.models.base import SMALLEST_STD, normalisation_unit


def normalise(
    stored: Tensor, mask: Tensor | None, front_end: SpectrogramMetadata, normalisation: Normalisation
) -> Tensor:
    """Return stored values (B, T, mel) restored to the front end's units and normalised, as float32; 0 in padding."""
    frames = stored.to(torch.float32)
    if frames is stored:
        frames = stored.clone()  # the following operations work in place
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
