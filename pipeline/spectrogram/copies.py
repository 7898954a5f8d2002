"""Augmented copies of clips: the waveform at another speed or pitch, before a front end computes its frames.

Speed is resampled by soxr: tempo and pitch change together, as on tape. Pitch alone is changed by librosa's phase vocoder,
which stretches time, and resampling by soxr; the length stays. torchaudio's pitch_shift resamples by a table of filters that
grows with the numbers of the ratio: 19 s for a clip of 5 s at 16 kHz, librosa 0.03 s (LOG.md).

Conventions: waveforms (sample,) float32 in [-1, 1] at the front end's rate.
"""

import math

import numpy as np
import soxr
from pydantic import Field, model_validator

from pipeline.artifacts.spectrogram import FrontEndMetadata
from pipeline.params import Params
from pipeline.spectrogram.decoding import RESAMPLING_QUALITY
from pipeline.spectrogram.front_end import FrontEnd, FrontEndSection, Inversion
from pipeline.spectrogram.registry import build_front_end

_WINDOW = 0.093  # seconds, about: the phase vocoder's, which is librosa's at 22,050 Hz


class Copy(Params):
    """An entry of `spectrogram.copies`: how the copy of a clip differs from it; what is left out stays."""

    speed: float = Field(default=1.0, ge=0.25, le=4.0)  # factor of playback: tempo and pitch together
    pitch: float = Field(default=0.0, ge=-24.0, le=24.0)  # semitones; tempo stays

    @model_validator(mode="after")
    def _differs_from_the_clip(self) -> "Copy":
        if self.speed == 1 and self.pitch == 0:
            raise ValueError(
                "expected a speed other than 1 or a pitch other than 0, as in {speed: 0.9} or {pitch: 2}, found neither: "
                "the copy would be the clip; change it or take it out"
            )
        return self

    @property
    def name(self) -> str:
        """Name of the folder of its frames, such as speed_0.9, pitch_-2 or speed_0.9_pitch_2."""
        changes = {"speed": self.speed} if self.speed != 1 else {}
        changes |= {"pitch": self.pitch} if self.pitch else {}
        return "_".join(f"{key}_{value:g}" for key, value in changes.items())

    @property
    def changes(self) -> dict[str, float]:
        """Return speed and pitch, as artifacts record them."""
        return {"speed": self.speed, "pitch": self.pitch}

    @property
    def settings(self) -> dict[str, float]:
        """Return the settings as params.yaml has them."""
        return self.model_dump(exclude_unset=True)


class CopyFrontEnd(FrontEnd):
    """Front end of copies: changes a waveform, and computes its frames as another front end does."""

    def __init__(self, params: FrontEndSection, copy: Copy) -> None:
        self._front_end, self._copy = build_front_end(params), copy
        self.min_samples = math.ceil(self._front_end.min_samples * copy.speed)
        self.empty_bands = self._front_end.empty_bands

    @property
    def metadata(self) -> FrontEndMetadata:
        """Return that of the other front end: frames of copies are read as those of clips."""
        return self._front_end.metadata

    @property
    def inversion(self) -> Inversion:
        """Return what makes a waveform, of the copy, of frames."""
        return self._front_end.inversion

    def num_frames(self, num_samples: int) -> int:
        """Return how many frames the copy of a clip of so many samples has."""
        return self._front_end.num_frames(round(num_samples / self._copy.speed))

    def log_mel(self, waveforms: np.ndarray) -> np.ndarray:
        """Return the frames (frame, mel) of the copy of a waveform (sample,)."""
        return self._front_end.log_mel(change_waveform(waveforms, self._copy, self.metadata["sample_rate"]))


def change_waveform(waveform: np.ndarray, copy: Copy, sample_rate: int) -> np.ndarray:
    """Return the waveform (sample,) of a copy; it is 1 / speed times as long."""
    if copy.speed != 1:
        waveform = soxr.resample(waveform, copy.speed, 1.0, RESAMPLING_QUALITY)
    return _shift_pitch(waveform, copy.pitch, sample_rate) if copy.pitch else waveform


def _shift_pitch(waveform: np.ndarray, semitones: float, sample_rate: int) -> np.ndarray:
    from librosa.effects import pitch_shift  # here: librosa takes longer to start than a stage that reads frames

    n_fft = 2 ** round(math.log2(_WINDOW * sample_rate))
    padded = np.pad(waveform, (0, max(0, n_fft - len(waveform))))  # librosa wants a window at least
    shifted = pitch_shift(
        padded, sr=sample_rate, n_steps=semitones, n_fft=n_fft, res_type=f"soxr_{RESAMPLING_QUALITY.lower()}"
    )
    return np.asarray(shifted[: len(waveform)], np.float32)
