"""Noise: uniform noise on features, and sounds that are added to clips at a signal-to-noise ratio.

Sounds are log-mel frames of the same front end. Without cross terms, the power of a sum of waveforms is the sum of their
powers. The ratio is that of the mean powers of all mel bands, of the clip and of the excerpt that is added.

Conventions: features (B, T, F) are normalised; `mask` (B, T) is True for real frames, None = all.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.training.augmentation.draws import draw_rows, draw_uniform
from pipeline.training.augmentation.power import NEPERS, PowerScale


class NoiseBank:
    """Sounds that excerpts are drawn from, as normalised log-mel frames (frame, mel) on the CPU."""

    def __init__(self, sounds: Sequence[Tensor], digest: str = "") -> None:
        """Take sounds, and what is identical where they are."""
        self.digest = digest
        self._frames = torch.cat(list(sounds))
        self._lengths = torch.tensor([len(sound) for sound in sounds])
        self._starts = self._lengths.cumsum(0) - self._lengths

    def draw(self, count: int, num_frames: int) -> Tensor:
        """Return excerpts (count, num_frames, mel) float32, of sounds that are equally likely; short ones are repeated."""
        sounds = torch.randint(0, len(self._lengths), (count, 1))
        lengths = self._lengths[sounds]
        first = (torch.rand(count, 1) * lengths).long()
        return self._frames[self._starts[sounds] + (first + torch.arange(num_frames)) % lengths].float()


class NoiseBanks(NamedTuple):
    """Sounds of the two augmentations that add some."""

    background: NoiseBank | None = None
    coloured: NoiseBank | None = None


NO_NOISE = NoiseBanks()


def add_noise(features: Tensor, largest: float) -> Tensor:
    """Add uniform noise, with a random amplitude per clip, as AST does for speech commands."""
    if largest == 0:
        return features
    strength = torch.rand(len(features), 1, 1) * largest
    return features + (torch.rand(features.shape) * strength).to(features.device)


def add_sounds(
    features: Tensor,
    mask: Tensor | None,
    bank: NoiseBank | None,
    probability: float,
    snr: Sequence[float],
    scale: PowerScale,
) -> Tensor:
    """Add an excerpt of a bank's sounds to clips, each with a probability, at a ratio drawn from `snr`, in dB."""
    rows = draw_rows(len(features), 0.0 if bank is None else probability)
    if bank is None or not len(rows):
        return features
    ratio = draw_uniform(snr, len(rows), 1, 1).to(features.device) * NEPERS
    sounds = bank.draw(len(rows), features.shape[1]).to(features.device) * scale.log_unit
    rows = rows.to(features.device)
    own = features[rows] * scale.log_unit
    real = None if mask is None else mask[rows][:, :, None]
    gain = _mean_power(own, real) - _mean_power(sounds, real) - ratio
    noisy = torch.logaddexp(own, sounds + gain) / scale.log_unit
    if real is not None:
        noisy = noisy.masked_fill(~real, 0.0)
    return features.index_copy(0, rows, noisy)


def _mean_power(loudness: Tensor, real: Tensor | None) -> Tensor:
    """Return ln of the mean power of log powers (B, T, F) over real frames and all bands, but for a constant: (B, 1, 1)."""
    inside = loudness if real is None else loudness.masked_fill(~real, -torch.inf)
    return inside.logsumexp((1, 2), keepdim=True)
