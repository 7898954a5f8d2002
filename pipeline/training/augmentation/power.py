"""Changes of a clip's spectrum in log-mel frames: gain, tilt, equaliser, and shifts of bands and of pitch.

A gain of a waveform adds a constant to its log powers, and a filter one to each band. A change of pitch by a ratio moves
what is at a frequency to its multiple; each band then holds what was at its centre divided by the ratio, interpolated
between two bands, and the front end's floor where no band was.

Conventions: features (B, T, F) are normalised log-mel frames.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.artifacts.spectrogram import SpectrogramMetadata
from pipeline.spectrogram.band_scale import band_centres, band_positions
from pipeline.training.augmentation.draws import draw_rows, draw_uniform
from pipeline.training.augmentation.settings import AugmentationParams, RandomParams
from pipeline.training.augmentation.time import change_tempo

NEPERS = math.log(10) / 10  # ln(power) per dB
SEMITONES = 12  # per octave
_PIVOT = 1000.0  # Hz, where a tilt changes nothing


class PowerScale(NamedTuple):
    """Meaning of normalised log-mel values as powers."""

    front_end: SpectrogramMetadata  # says the floor, and the frequencies of the bands
    unit: float  # of the front end, in ln(power)
    mean: float = 0.0  # that was subtracted from the front end's values
    size: float = 1.0  # that they were divided by
    typical: float = 0.0  # mean of the training frames, normalised

    @property
    def log_unit(self) -> float:
        """Return the size of one unit of normalised values in ln(power)."""
        return self.unit * self.size

    @property
    def floor(self) -> float:
        """Return the normalised value of the front end's floor, below which there is nothing."""
        return (self.front_end["log_floor"] - self.mean) / self.size

    def normalise(self, frames: Tensor) -> Tensor:
        """Return frames in the front end's units as normalised ones."""
        return (frames - self.mean) / self.size


def change_spectrum(features: Tensor, mask: Tensor | None, params: AugmentationParams, scale: PowerScale) -> Tensor:
    """Change pitch, bands and levels of clips, each change with its probability; padding stays 0."""
    changed = change_levels(move_bands(features, mask, params, scale), params, scale)
    return changed if changed is features or mask is None else changed.masked_fill(~mask[:, :, None], 0.0)


def move_bands(features: Tensor, mask: Tensor | None, params: AugmentationParams, scale: PowerScale) -> Tensor:
    """Move what clips hold to other bands: by speed, which changes the tempo too, by pitch, and by whole bands."""
    batch, num_bands = len(features), features.shape[2]
    speed = torch.ones(batch, 1)
    rows = draw_rows(batch, params.speed.probability)
    if faster := len(rows):
        speed[rows] = draw_uniform(params.speed.range, faster, 1)
        features = change_tempo(features, mask, speed, 1)
    semitones, shift = (_draw(batch, part) for part in (params.pitch, params.band_shift))
    if not faster and semitones is None and shift is None:
        return features
    octaves = speed.log2() + (0 if semitones is None else semitones / SEMITONES)
    source = _source_bands(octaves, num_bands, scale) - (0 if shift is None else shift)
    return read_bands(features, source, scale.floor)


def read_bands(features: Tensor, source: Tensor, floor: float) -> Tensor:
    """Return bands that hold what `features` has at the positions `source` (B, F) of the axis of bands; else `floor`."""
    num_bands = features.shape[2]
    low = source.floor()
    share = (source - low).to(features.device)[:, None, :]
    padded = F.pad(features, (1, 1), value=floor)  # what is beyond the bands
    places = [(low.long() + step).clamp(0, num_bands + 1).to(features.device) for step in (1, 2)]
    lower, upper = (padded.gather(2, place[:, None, :].expand_as(features)) for place in places)
    return torch.where(share > 0, lower + share * (upper - lower), lower)


def change_levels(features: Tensor, params: AugmentationParams, scale: PowerScale) -> Tensor:
    """Add the dB of gain, tilt and equaliser to clips; what falls below the floor is at the floor."""
    batch, num_bands = len(features), features.shape[2]
    changes = []
    if (gain := _draw(batch, params.gain)) is not None:
        changes.append(gain.expand(-1, num_bands))
    if (tilt := _draw(batch, params.tilt)) is not None:
        octaves = np.log2(np.maximum(band_centres(scale.front_end), 1.0) / _PIVOT)
        changes.append(tilt * torch.from_numpy(octaves).float())
    if (knots := _draw(batch, params.equaliser, params.equaliser.bands)) is not None:
        changes.append(F.interpolate(knots[:, None], size=num_bands, mode="linear", align_corners=True)[:, 0])
    if not changes:
        return features
    decibels = torch.stack(changes).sum(0)[:, None, :].to(features.device)
    changed = (features + decibels * (NEPERS / scale.log_unit)).clamp(min=scale.floor)
    return torch.where(decibels == 0, features, changed)


def _draw(batch: int, params: RandomParams, columns: int = 1) -> Tensor | None:
    """Return numbers (B, column), 0 for clips that are left as they are; None where these are all."""
    rows = draw_rows(batch, params.probability)
    if not len(rows):
        return None
    numbers = torch.zeros(batch, columns)
    numbers[rows] = draw_uniform(params.range, len(rows), columns)
    return numbers


def _source_bands(octaves: Tensor, num_bands: int, scale: PowerScale) -> Tensor:
    """Return where on the axis of bands (B, F) each band's content was before pitches rose by `octaves` (B, 1)."""
    positions = torch.arange(num_bands, dtype=torch.float64).expand(len(octaves), -1)
    if not octaves.any():
        return positions.float()
    hertz = band_centres(scale.front_end)[None, :] / np.exp2(octaves.double().numpy())
    source = torch.from_numpy(band_positions(scale.front_end, hertz.ravel())).reshape(hertz.shape)
    return torch.where(octaves == 0, positions, source).float()
