"""Masks over a feature map: SpecAugment's spans of frames and bands (Park et al., 2019), and random erasing.

Random erasing (Zhong et al., 2020, arXiv 1708.04896) hides a rectangle. Hidden values are 0, the mean of normalised
spectrograms and codebooks.

Conventions: features (B, T, F); `mask` (B, T) is True for real frames, None = all.
"""

import math

import torch
from torch import Tensor

from pipeline.training.augmentation.draws import draw_rows, draw_uniform
from pipeline.training.augmentation.settings import ErasingParams, MasksParams


def mask_features(
    features: Tensor,
    mask: Tensor | None,
    frame_masks: MasksParams | None,
    band_masks: MasksParams,
    num_channels: int = 1,
) -> Tensor:
    """Zero spans of frames (unless None) and of features.

    Of several channels, one after another along the features, all lose the same bands.
    """
    batch, num_frames, num_features = features.shape
    if frame_masks is not None:
        frames = draw_spans(clip_lengths(mask, batch, num_frames), num_frames, frame_masks).to(features.device)
        features = features.masked_fill(frames[:, :, None], 0.0)
    num_bands = num_features // num_channels
    bands = draw_spans(clip_lengths(None, batch, num_bands), num_bands, band_masks)
    bands = bands.repeat(1, num_channels).to(features.device)
    return features.masked_fill(bands[:, None, :], 0.0)


def erase(features: Tensor, mask: Tensor | None, params: ErasingParams, num_channels: int = 1) -> Tensor:
    """Zero a rectangle of each clip, with a probability; its sides are fractions of the clip's own frames and of the bands.

    A side that area and aspect would make longer than the clip is as long as the clip. All channels lose the same rectangle.
    """
    batch, num_frames, num_features = features.shape
    rows = draw_rows(batch, params.probability)
    if not len(rows):
        return features
    num_bands = num_features // num_channels
    area = draw_uniform(params.area, len(rows), 1)
    aspect = draw_uniform([math.log(end) for end in params.aspect], len(rows), 1).exp()
    sides = ((area * aspect).sqrt(), (area / aspect).sqrt())
    lengths = (clip_lengths(mask, batch, num_frames)[rows], torch.full((len(rows), 1), num_bands))
    frames, bands = (
        _span(size, (side.clamp(max=1) * size).round().long(), length)
        for side, size, length in zip(sides, lengths, (num_frames, num_bands), strict=True)
    )
    hidden = torch.zeros(features.shape, dtype=torch.bool)
    hidden[rows] = frames[:, :, None] & bands.repeat(1, num_channels)[:, None, :]
    return features.masked_fill(hidden.to(features.device), 0.0)


def clip_lengths(mask: Tensor | None, batch: int, length: int) -> Tensor:
    """Return the number of real frames of each clip, on the CPU, where spans are drawn: (B, 1)."""
    return torch.full((batch, 1), length) if mask is None else mask.sum(1, keepdim=True).cpu()


def draw_spans(lengths: Tensor, length: int, masks: MasksParams) -> Tensor:
    """Draw `count` spans in each row of (B, length), given the real lengths (B, 1); True = inside one."""
    inside = torch.zeros(len(lengths), length, dtype=torch.bool)
    for _ in range(masks.count):
        if isinstance(masks.width, int):
            size = torch.randint(0, min(masks.width, length) + 1, lengths.shape)
            inside |= _span(length, size, length)
        else:
            size = (torch.rand(lengths.shape) * ((lengths * masks.width).long() + 1)).long()
            inside |= _span(lengths, size, length)
    return inside


def _span(lengths: Tensor | int, size: Tensor, length: int) -> Tensor:
    """Draw a span of `size` (B, 1) within the first `lengths` positions of each row of (B, length)."""
    start = (torch.rand(size.shape) * (lengths - size + 1)).long()
    positions = torch.arange(length)
    return (positions >= start) & (positions < start + size)
