"""Log-mel frames as clips are compared by: few bands, smoothed over time, and of these the changes of the spectrum's shape.

Conventions: bands (frame, band) float32 in dB, at the frame rate of the spectrogram. Shape is what a band has over the mean
of its frame: it depends neither on gain nor on loudness.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.artifacts.spectrogram import CLIP_RANGE, DECIBELS, FrontEndMetadata

_BANDS = 32
_SMOOTHING = 0.03  # seconds; without it, a shift by half a hop changes too much
_RANGE = 60.0  # dB below the loudest value; softer ones follow from noise, coding and the floor of the logarithm
_AUDIBLE = 45.0  # dB below the loudest value; a frame with nothing above it is silent
_LEAST_CHANGE = 0.5  # dB, root mean square; below it a sound is constant, and its changes are rounding


@dataclass(frozen=True)
class Scale:
    """Properties of a front end that comparisons need."""

    frame_rate: float  # frames per second
    decibels: float  # in one of its units

    @classmethod
    def of(cls, metadata: FrontEndMetadata) -> "Scale":
        """Return the scale of a front end."""
        levels = {units: size for units, size in DECIBELS.items() if units != CLIP_RANGE}  # of which shape alone counts
        return cls(metadata["frame_rate"], levels.get(metadata["units"], 1.0))

    def frames(self, seconds: float) -> int:
        """Return the number of frames in a duration, at least 1."""
        return max(1, round(seconds * self.frame_rate))


def smooth_bands(frames: np.ndarray, scale: Scale) -> np.ndarray:
    """Return log-mel frames (frame, mel) as smoothed bands."""
    n_mels = frames.shape[1]
    starts = np.linspace(0, n_mels, min(_BANDS, n_mels) + 1).astype(int)[:-1]
    widths = np.diff(starts, append=n_mels).astype(np.float32)
    bands = np.add.reduceat(frames, starts, axis=1) * (np.float32(scale.decibels) / widths)
    return _moving_mean(bands, scale.frames(_SMOOTHING))


def limit_range(bands: np.ndarray) -> np.ndarray:
    """Return bands relative to their loudest value, at least -60 dB."""
    limited: np.ndarray = np.maximum(bands - bands.max(), np.float32(-_RANGE))
    return limited


def is_audible(limited: np.ndarray) -> np.ndarray:
    """Return whether each frame of bands that `limit_range` returned is audible: (frame,) bool."""
    audible: np.ndarray = limited.max(axis=1) > -_AUDIBLE
    return audible


def shape_changes(limited: np.ndarray, audible: np.ndarray, width: int) -> np.ndarray | None:
    """Return the changes of shape (frame, band): its difference from its mean over `width` frames, 0 where not audible.

    What is steady for longer, such as the spectrum of rain, is thus left out. None where the sound is constant.
    """
    weights = audible[:, None].astype(np.float32)
    shape = (limited - limited.mean(axis=1, keepdims=True)) * weights
    means = _moving_mean(shape, width) / np.maximum(_moving_mean(weights, width), np.float32(1e-6))
    changes: np.ndarray = (shape - means) * weights
    constant = float(np.square(changes).sum()) <= _LEAST_CHANGE**2 * weights.sum() * limited.shape[1]
    return None if constant else changes


def _moving_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Return the mean of the `width` rows around each row of (frame, column), fewer of them at the ends."""
    sums = np.zeros((len(values) + 1, values.shape[1]))
    np.cumsum(values, axis=0, dtype=np.float64, out=sums[1:])
    rows = np.arange(len(values))
    first, last = np.maximum(rows - (width - 1) // 2, 0), np.minimum(rows + width // 2 + 1, len(values))
    means: np.ndarray = (sums[last] - sums[first]) / (last - first)[:, None]
    return means.astype(np.float32)
