"""Samples of the waveform as frames, for networks that learn from the waveform itself.

Conventions: frame i holds the samples from `hop_length` * i on, (frame, sample) float32 in [-1, 1], in the place of (frame,
mel); samples behind the last whole frame are left out.
"""

import math
from typing import ClassVar, Literal

import numpy as np
from pydantic import PositiveInt

from pipeline.artifacts.spectrogram import SAMPLES, FrontEndMetadata
from pipeline.spectrogram.front_end import FrontEnd, FrontEndSection, Inversion


class WaveformParams(FrontEndSection):
    """Settings of the front end."""

    kind: Literal["waveform"]
    sample_rate: PositiveInt  # Hz
    hop_length: PositiveInt  # samples of a frame

    has_levels: ClassVar[bool] = False
    has_samples: ClassVar[bool] = True

    @property
    def is_log_mel(self) -> bool:
        return False

    @property
    def frame_rate(self) -> float:
        return self.sample_rate / self.hop_length


class WaveformFrontEnd(FrontEnd):
    """Front end that cuts waveforms into frames of samples."""

    Params = WaveformParams
    invertible: ClassVar[bool] = False
    empty_bands: list[int] = []  # noqa: RUF012 - of the instance

    def __init__(self, params: WaveformParams) -> None:
        self._params = params
        self.min_samples = params.hop_length

    @property
    def metadata(self) -> FrontEndMetadata:
        """Return the metadata that artifacts of these frames record."""
        rate, hop = self._params.sample_rate, self._params.hop_length
        return {
            "front_end": "waveform",
            "units": SAMPLES,
            "sample_rate": rate,
            "n_fft": hop,
            "win_length": hop,
            "hop_length": hop,
            "n_mels": hop,
            "f_min": 0.0,
            "f_max": rate / 2,
            "log_floor": 0.0,
            "frame_rate": rate / hop,
            "params": self._params.recorded(),
        }

    @property
    def inversion(self) -> Inversion:
        """Return where frames lie in a waveform; pages that resynthesise take levels of bands."""
        hop = self._params.hop_length
        return Inversion(np.empty((hop, 0), np.float32), np.ones(hop), math.e, pre_emphasis=0.0, before=hop // 2)

    def num_frames(self, num_samples: int) -> int:
        return num_samples // self._params.hop_length

    def log_mel(self, waveforms: np.ndarray) -> np.ndarray:
        """Return the frames (frame, sample) of a waveform (sample,), or (clip, frame, sample) of (clip, sample)."""
        count = self.num_frames(waveforms.shape[-1])
        whole = waveforms[..., : count * self._params.hop_length].astype(np.float32, copy=False)
        return whole.reshape(*waveforms.shape[:-1], count, self._params.hop_length)
