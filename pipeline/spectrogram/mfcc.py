"""Mel-frequency cepstral coefficients, as `librosa.feature.mfcc` and `torchaudio.transforms.MFCC` compute them.

Conventions: as in `pipeline/spectrogram/mel.py`; the n_mels levels of a frame in dB become the first n_mfcc coefficients of
their orthonormal discrete cosine transform (DCT-II; Davis and Mermelstein, 1980), without liftering. The transposed
transform gives the levels back, smoothed over the bands, for what needs log-mel (`pipeline/spectrogram/log_mel.py`).
"""

from typing import Literal, Self

import numpy as np
from pydantic import PositiveInt, model_validator

from pipeline.artifacts.spectrogram import FrontEndMetadata
from pipeline.spectrogram.log_mel import cosine_transform
from pipeline.spectrogram.mel import MelFrontEnd, MelParams


class MfccParams(MelParams):
    """Settings of MFCCs: those of the mel spectrogram, and the number of coefficients."""

    kind: Literal["mfcc"]  # type: ignore[assignment]
    n_mfcc: PositiveInt  # coefficients of a frame, the first of which is its level

    @property
    def is_log_mel(self) -> bool:
        return False

    @model_validator(mode="after")
    def _check_coefficients(self) -> Self:
        if self.n_mfcc > self.n_mels:
            raise ValueError(f"n_mfcc {self.n_mfcc} must be at most n_mels {self.n_mels}")
        if self.log != "decibel":
            raise ValueError(f"log must be decibel with kind mfcc, as in librosa and torchaudio, found {self.log}")
        return self


class MfccFrontEnd(MelFrontEnd):
    """Front end that computes mel-frequency cepstral coefficients of waveforms."""

    Params = MfccParams  # type: ignore[assignment]
    params: MfccParams

    def __init__(self, params: MfccParams) -> None:
        super().__init__(params)
        self._transform = cosine_transform(params.n_mels, params.n_mfcc)

    @property
    def metadata(self) -> FrontEndMetadata:
        """Return the metadata that artifacts of these frames record."""
        metadata = super().metadata
        lowest = metadata["log_floor"] * float(
            self._transform[:, 0].sum()
        )  # the level of silence, the first coefficient
        return {**metadata, "n_mels": self.params.n_mfcc, "units": "MFCC", "log_floor": lowest}

    def log_mel(self, waveforms: np.ndarray) -> np.ndarray:
        """Return the coefficients (frame, n_mfcc) of a waveform (sample,), or (clip, frame, n_mfcc) of (clip, sample)."""
        levels = super().log_mel(waveforms)
        return levels if waveforms.ndim > 1 else levels @ self._transform
