"""Changes of time: shift, stretch and speed, circular within each clip's own length, and reversal.

Conventions: B batch, T frame, F feature. `inputs` is (B, T, mel) with time_axis 1, or tokens (B, codebook, T) with time_axis
2; `mask` (B, T) is True for real frames, which are the first of a clip, None = all. Padding stays in place.
"""

import torch
from torch import Tensor

from pipeline.training.augmentation.draws import draw_rows
from pipeline.training.augmentation.settings import AugmentationParams


def warp_time(inputs: Tensor, mask: Tensor | None, params: AugmentationParams, time_axis: int) -> Tensor:
    """Shift and stretch each clip in time by random amounts."""
    if params.time_shift == 0 and params.time_stretch == 0:
        return inputs
    batch, lengths = len(inputs), _lengths(inputs, mask, time_axis)
    shift = ((torch.rand(batch, 1).to(inputs.device) * 2 - 1) * params.time_shift * lengths).long()
    speed = ((torch.rand(batch, 1).to(inputs.device) * 2 - 1) * params.time_stretch).exp()
    return _read(inputs, lengths, speed, shift, time_axis)


def change_tempo(inputs: Tensor, mask: Tensor | None, speed: Tensor, time_axis: int) -> Tensor:
    """Read each clip faster by a factor `speed` (B, 1), from its first frame on."""
    lengths = _lengths(inputs, mask, time_axis)
    return _read(inputs, lengths, speed.to(inputs.device), torch.zeros_like(lengths), time_axis)


def reverse(inputs: Tensor, mask: Tensor | None, probability: float, time_axis: int) -> Tensor:
    """Read clips backwards, each with a probability."""
    rows = draw_rows(len(inputs), probability).to(inputs.device)
    if not len(rows):
        return inputs
    frames = torch.arange(inputs.shape[time_axis], device=inputs.device)
    lengths = _lengths(inputs, mask, time_axis)[rows]
    source = torch.where(frames < lengths, lengths - 1 - frames, frames)
    return inputs.index_copy(0, rows, _take(inputs[rows], source, time_axis))


def _lengths(inputs: Tensor, mask: Tensor | None, time_axis: int) -> Tensor:
    """Return the number of real frames of each clip: (B, 1), on the device."""
    if mask is None:
        return torch.full((len(inputs), 1), inputs.shape[time_axis], device=inputs.device)
    return mask.sum(1, keepdim=True)


def _read(inputs: Tensor, lengths: Tensor, speed: Tensor, shift: Tensor, time_axis: int) -> Tensor:
    frames = torch.arange(inputs.shape[time_axis], device=inputs.device)
    source = torch.where(frames < lengths, ((frames * speed).long() + shift) % lengths, frames)  # (B, T)
    return _take(inputs, source, time_axis)


def take_frames(features: Tensor, source: Tensor) -> Tensor:
    """Return the frames of clips (B, T, F) at places (B, S), (B, S, F).

    Whole frames are copied, in a fortieth of the time that `take_along_dim` needs for their values one by one.
    """
    first = torch.arange(len(features), device=features.device)[:, None] * features.shape[1]
    frames = features.flatten(0, 1).index_select(0, (source + first).flatten())
    return frames.view(*source.shape, features.shape[2])


def _take(inputs: Tensor, source: Tensor, time_axis: int) -> Tensor:
    return take_frames(inputs, source) if time_axis == 1 else torch.take_along_dim(inputs, source[:, None, :], dim=2)
