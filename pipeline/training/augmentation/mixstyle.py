"""Freq-MixStyle: statistics of each band mixed between clips, so that a network relies less on a recording's device.

Schmid et al., 2022 (CP-JKU's submission to DCASE 2022), after MixStyle (Zhou et al., 2021, arXiv 2104.02008). Mean and
standard deviation of each band over a clip's frames become mixtures with those of another clip of the batch, with a weight
from Beta(alpha, alpha). Labels stay. The authors decide for a whole batch whether it is mixed; here each clip is drawn.

Conventions: features (B, T, F); `mask` (B, T) is True for real frames, None = all.
"""

import torch
from torch import Tensor

from pipeline.training.augmentation.draws import draw_rows
from pipeline.training.augmentation.mixing import draw_weights
from pipeline.training.augmentation.settings import MixStyleParams

_SMALLEST_VARIANCE = 1e-6


def mix_styles(features: Tensor, mask: Tensor | None, params: MixStyleParams) -> Tensor:
    """Mix the statistics of the bands of clips with those of others, each clip with a probability; padding stays 0."""
    rows = draw_rows(len(features), params.probability)
    if not len(rows):
        return features
    weight = draw_weights(len(rows), params.alpha)[:, None, None].to(features.device)
    partner = torch.randint(0, len(features), (len(rows),)).to(features.device)
    rows = rows.to(features.device)
    mean, std = _statistics(features, mask)
    new_mean, new_std = (weight * own[rows] + (1 - weight) * own[partner] for own in (mean, std))
    mixed = (features[rows] - mean[rows]) / std[rows] * new_std + new_mean
    if mask is not None:
        mixed = mixed.masked_fill(~mask[rows][:, :, None], 0.0)
    return features.index_copy(0, rows, mixed)


def _statistics(features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each band over each clip's real frames: (B, 1, F) each."""
    if mask is None:
        mean = features.mean(1, keepdim=True)
        return mean, ((features - mean).square().mean(1, keepdim=True) + _SMALLEST_VARIANCE).sqrt()
    real = mask[:, :, None].to(features.dtype)
    count = real.sum(1, keepdim=True)
    mean = (features * real).sum(1, keepdim=True) / count
    square = ((features - mean).square() * real).sum(1, keepdim=True) / count
    return mean, (square + _SMALLEST_VARIANCE).sqrt()
