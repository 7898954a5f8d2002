"""Batch augmentation: shift, stretch, mix-up, SpecAugment. Vectorised, with one torch generator seeded per epoch.

In order: time shift and stretch (circular, within each clip's own length), token noise and token masking (spans become the
mask token), then on the feature map mix-up of pairs with soft labels (Zhang et al., 2018), SpecAugment's masks over frames
and bands (Park et al., 2019), filled with zero, the mean of normalised spectrograms and codebooks, and noise. Numbers are
drawn on the CPU and moved to the device, so that they are the same on every device.

Mix-up of AST and PSLA mixes waveforms (after Tokozume et al., 2018, arXiv 1711.10282), which are not available here. Without
cross terms, the power of a sum of waveforms is the sum of their powers, so `mixup_domain: power` adds the powers, weighted
by the squares of the mixing weights, and takes the logarithm.

Conventions: B batch, T frame, F feature, K class.
"""

from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor

from pipeline.params import Params

Fraction = Field(ge=0, le=1)


class MasksParams(Params):
    count: NonNegativeInt  # spans per clip
    # Each span covers 0 to this many frames or bands of the batch; a fraction below 1 is one of the clip's own length.
    width: NonNegativeInt | Annotated[float, Field(gt=0, lt=1)]


class AugmentationParams(Params):
    time_shift: float = Fraction  # largest shift as a fraction of the clip
    time_stretch: float = Fraction  # largest change of speed, as a natural logarithm: 0.1 reads 10 % faster or slower
    mixup_probability: float = Fraction
    mixup_alpha: float = Field(gt=0, le=1000)  # of Beta(alpha, alpha)
    mixup_domain: Literal["log", "power"]  # power: powers are added as in mixed waveforms, for models that read frames
    token_noise: float = Fraction  # probability that a token becomes one of its nearest tokens
    frame_masks: MasksParams  # for tokens these become the mask token, before the embedding
    band_masks: MasksParams
    noise: float = Fraction  # largest noise of a clip, uniform from 0, in units of the normalised features


class Mixed(NamedTuple):
    features: Tensor  # (B, T, F)
    mask: Tensor | None  # (B, T): a mixture is as long as the longer of its two
    targets: Tensor  # (B, K)


def warp_time(inputs: Tensor, mask: Tensor | None, params: AugmentationParams, time_axis: int) -> Tensor:
    """Shift and stretch each clip in time by random amounts, circularly within its length; padding stays in place.

    `inputs` is (B, T, mel) with time_axis 1, or (B, codebook, T) with time_axis 2.
    """
    if params.time_shift == 0 and params.time_stretch == 0:
        return inputs
    batch, device = len(inputs), inputs.device
    frames = torch.arange(inputs.shape[time_axis], device=device)
    full = torch.full((batch, 1), len(frames), device=device)
    lengths = full if mask is None else mask.sum(1, keepdim=True)
    shift = ((torch.rand(batch, 1).to(device) * 2 - 1) * params.time_shift * lengths).long()
    speed = ((torch.rand(batch, 1).to(device) * 2 - 1) * params.time_stretch).exp()
    source = torch.where(frames < lengths, ((frames * speed).long() + shift) % lengths, frames)  # (B, T)
    index = source[:, :, None] if time_axis == 1 else source[:, None, :]
    return torch.take_along_dim(inputs, index, dim=time_axis)


def replace_tokens(tokens: Tensor, neighbours: Tensor, probability: float) -> Tensor:
    """Replace tokens (B, codebook, T), with a probability, by draws from `neighbours` (codebook, token, neighbour).

    This imitates the noise of k-means itself, by which a frame near the border of two tokens may get either. Special tokens
    are their own neighbours.
    """
    if probability == 0:
        return tokens
    device = tokens.device
    choice = torch.randint(0, neighbours.shape[2], tokens.shape).to(device)
    near = neighbours[torch.arange(len(neighbours), device=device)[:, None], tokens, choice]
    return torch.where(torch.rand(tokens.shape).to(device) < probability, near, tokens)


def mask_tokens(tokens: Tensor, mask: Tensor | None, mask_token: int, masks: MasksParams) -> Tensor:
    """Replace spans of real tokens (B, codebook, T) by the mask token."""
    hidden = _spans(_lengths(mask, len(tokens), tokens.shape[2]), tokens.shape[2], masks).to(tokens.device)
    if mask is not None:
        hidden &= mask
    return tokens.masked_fill(hidden[:, None, :], mask_token)


def mask_features(
    features: Tensor,
    mask: Tensor | None,
    frame_masks: MasksParams | None,
    band_masks: MasksParams,
    num_channels: int = 1,
) -> Tensor:
    """Zero spans of frames (unless None) and of features of (B, T, F); `mask` (B, T) is True for real frames.

    Of several channels, one after another along the features, all lose the same bands.
    """
    batch, num_frames, num_features = features.shape
    if frame_masks is not None:
        frames = _spans(_lengths(mask, batch, num_frames), num_frames, frame_masks).to(features.device)
        features = features.masked_fill(frames[:, :, None], 0.0)
    num_bands = num_features // num_channels
    bands = _spans(_lengths(None, batch, num_bands), num_bands, band_masks).repeat(1, num_channels).to(features.device)
    return features.masked_fill(bands[:, None, :], 0.0)


def add_noise(features: Tensor, largest: float) -> Tensor:
    """Add uniform noise to (B, T, F), with a random amplitude per clip, as AST does for speech commands."""
    if largest == 0:
        return features
    strength = torch.rand(len(features), 1, 1) * largest
    return features + (torch.rand(features.shape) * strength).to(features.device)


def mix(
    features: Tensor, mask: Tensor | None, targets: Tensor, params: AugmentationParams, log_unit: float | None
) -> Mixed:
    """Mix each clip, with the given probability, with another of the batch; targets are mixed with the same weights.

    `log_unit` is the size of one unit of the feature map in natural logarithms of power, or None where it has no such unit
    (tokens): these feature maps are mixed linearly, whatever `mixup_domain` is.
    """
    if params.mixup_probability == 0 or len(features) < 2:
        return Mixed(features, mask, targets)
    # Beta draws from Gamma draws; torch's own Beta ignores zero-size shapes and is slower to construct.
    gammas = torch._standard_gamma(torch.full((2, len(features)), params.mixup_alpha))
    weight = gammas[0] / gammas.sum(0).clamp(min=1e-20)
    weight = torch.where(torch.rand(len(features)) < params.mixup_probability, weight, 1.0).to(features.device)
    partner = torch.randperm(len(features)).to(features.device)
    longer = None if mask is None else mask | (mask[partner] & (weight < 1)[:, None])
    by_clip = weight[:, None, None]
    if params.mixup_domain == "power" and log_unit is not None:
        own, other = (
            _loudness(values, real, log_unit, share)
            for values, real, share in (
                (features, mask, by_clip),
                (features[partner], None if mask is None else mask[partner], 1 - by_clip),
            )
        )
        mixed = torch.logaddexp(own, other) / log_unit
        if longer is not None:
            mixed = mixed.masked_fill(~longer[:, :, None], 0.0)
    else:
        mixed = by_clip * features + (1 - by_clip) * features[partner]
    return Mixed(mixed, longer, weight[:, None] * targets + (1 - weight[:, None]) * targets[partner])


def _loudness(features: Tensor, mask: Tensor | None, log_unit: float, share: Tensor) -> Tensor:
    """Return the log power of each waveform scaled by `share` (B, 1, 1), with silence after its end."""
    loudness = features * log_unit + 2 * share.log()
    return loudness if mask is None else loudness.masked_fill(~mask[:, :, None], -torch.inf)


def _lengths(mask: Tensor | None, batch: int, length: int) -> Tensor:
    """Return the number of real frames of each clip, on the CPU, where spans are drawn: (B, 1)."""
    return torch.full((batch, 1), length) if mask is None else mask.sum(1, keepdim=True).cpu()


def _spans(lengths: Tensor, length: int, masks: MasksParams) -> Tensor:
    """Draw `count` spans in each row of (B, length), given the real lengths (B, 1); True = inside one."""
    inside = torch.zeros(len(lengths), length, dtype=torch.bool)
    positions = torch.arange(length)
    for _ in range(masks.count):
        if isinstance(masks.width, int):
            size = torch.randint(0, min(masks.width, length) + 1, lengths.shape)
            start = (torch.rand(lengths.shape) * (length - size + 1)).long()
        else:
            size = (torch.rand(lengths.shape) * ((lengths * masks.width).long() + 1)).long()
            start = (torch.rand(lengths.shape) * (lengths - size + 1)).long()
        inside |= (positions >= start) & (positions < start + size)
    return inside
