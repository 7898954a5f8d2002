"""Mel spectrogram scaled to 0 to 1 within each clip, as "audio-tokens" (danavery, 2024) normalises its spectrograms.

Conventions: as in `pipeline/spectrogram/mel.py`; the clip's smallest value in dB is 0 and its largest 1, over all frames and
bands. Levels of clips cannot be compared, and a value's dB depend on its clip: inversion takes RANGE for every clip. A clip
whose values are all alike is 0.
"""

from typing import Literal

import numpy as np

from pipeline.artifacts.spectrogram import CLIP_RANGE, RANGE, FrontEndMetadata
from pipeline.spectrogram.front_end import Inversion
from pipeline.spectrogram.mel import MelFrontEnd, MelParams


class ScaledMelParams(MelParams):
    """Settings of the scaled mel spectrogram: those of the mel spectrogram."""

    kind: Literal["scaled_mel"]  # type: ignore[assignment]


class ScaledMelFrontEnd(MelFrontEnd):
    """Front end that scales each clip's mel spectrogram in dB to 0 to 1."""

    Params = ScaledMelParams  # type: ignore[assignment]

    @property
    def metadata(self) -> FrontEndMetadata:
        """Return the metadata that artifacts of these frames record."""
        return {**super().metadata, "units": CLIP_RANGE, "log_floor": 0.0}

    @property
    def inversion(self) -> Inversion:
        return super().inversion._replace(log_base=10 ** (RANGE * self.params.exponent / 20))

    def log_mel(self, waveforms: np.ndarray) -> np.ndarray:
        """Return the frames (frame, mel) in 0 to 1 of a waveform (sample,), or (clip, frame, mel) of (clip, sample)."""
        decibels = super().log_mel(waveforms)
        return decibels if waveforms.ndim > 1 else scale_to_range(decibels)


def scale_to_range(values: np.ndarray) -> np.ndarray:
    """Return values with the smallest at 0 and the largest at 1; 0 where all are alike."""
    if not values.size:
        return values
    low, high = values.min(), values.max()
    return np.asarray((values - low) / max(high - low, np.finfo(np.float32).tiny), dtype=np.float32)
