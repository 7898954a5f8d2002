"""Mel spectrogram in dB, as in librosa and torchaudio: any window, rate, band count, scale and norm.

Conventions: waveforms (sample,) or (clip, sample) float32 in [-1, 1]; log-mel (frame, mel) or (clip, frame, mel) float32, 10
log10 of power, relative to a power of 1. Windows are centred: the centre of frame t is sample t * hop_length, and the
waveform is reflected at its ends (torchaudio's default; librosa needs pad_mode="reflect"): 1 + num_samples // hop_length.

Equal to `librosa.feature.melspectrogram(power=2, center=True, pad_mode="reflect")` + 10 log10, and to
`torchaudio.transforms.MelSpectrogram` + `AmplitudeToDB("power", top_db=None)`, within 0.01 dB where a band holds more than
a millionth of the clip's loudest band; below, all three differ by the rounding of float32.
"""

from typing import Literal, Self

import numpy as np
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from pipeline.artifacts.spectrogram import FrontEndMetadata
from pipeline.spectrogram.filterbank import FilterBank, num_windows, sliding_windows
from pipeline.spectrogram.front_end import FrontEnd, FrontEndSection, Inversion


class MelParams(FrontEndSection):
    """Settings of the mel spectrogram."""

    kind: Literal["mel"]
    sample_rate: PositiveInt  # Hz
    n_fft: PositiveInt  # samples
    win_length: PositiveInt  # samples, a Hann window in the middle of n_fft
    hop_length: PositiveInt  # samples
    n_mels: PositiveInt
    f_min: NonNegativeFloat  # Hz
    f_max: PositiveFloat  # Hz
    mel_scale: Literal["slaney", "htk"]
    norm: Literal["slaney", "none"]  # slaney: triangles of equal area
    log_floor: float  # dB, -100 is torchaudio's

    @property
    def frame_rate(self) -> float:
        return self.sample_rate / self.hop_length

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.win_length > self.n_fft:
            raise ValueError(f"win_length {self.win_length} must be at most n_fft {self.n_fft}")
        if not self.f_min < self.f_max <= self.sample_rate / 2:
            raise ValueError(
                f"f_min {self.f_min} < f_max {self.f_max} <= half of sample_rate {self.sample_rate} must hold"
            )
        return self


class MelFrontEnd(FrontEnd):
    """Front end that computes mel spectrograms in dB of waveforms."""

    Params = MelParams

    def __init__(self, params: MelParams) -> None:
        self.params = params
        self.min_samples = params.n_fft // 2 + 1  # reflection needs half a window
        # Periodic Hann window: the symmetric one of one more point, without the last.
        hann = np.hanning(params.win_length + 1)[:-1] if params.win_length > 1 else np.ones(1)
        left = (params.n_fft - params.win_length) // 2
        self._window = np.pad(hann, (left, params.n_fft - params.win_length - left)).astype(np.float32)
        self._filters = FilterBank(mel_filters(params), params.n_fft)
        self.empty_bands = self._filters.empty_bands  # without any FFT bin: they stay at the floor

    @property
    def metadata(self) -> FrontEndMetadata:
        """Return the metadata that artifacts of these frames record."""
        params = self.params
        return {
            "front_end": "mel",
            "units": "dB",
            "sample_rate": params.sample_rate,
            "n_fft": params.n_fft,
            "win_length": params.win_length,
            "hop_length": params.hop_length,
            "n_mels": params.n_mels,
            "f_min": params.f_min,
            "f_max": params.f_max,
            "log_floor": params.log_floor,
            "frame_rate": params.frame_rate,
            "params": params.model_dump(),
        }

    @property
    def inversion(self) -> Inversion:
        return Inversion(
            filters=mel_filters(self.params).astype(np.float32),
            window=np.hanning(self.params.win_length + 1)[:-1],
            log_base=10 ** (1 / 10),
            pre_emphasis=0.0,
            before=0,
        )

    def num_frames(self, num_samples: int) -> int:
        """Return the number of frames of a clip of `num_samples`; 0 when it is too short to be reflected."""
        if num_samples < self.min_samples:
            return 0
        return num_windows(num_samples + 2 * (self.params.n_fft // 2), self.params.n_fft, self.params.hop_length)

    def log_mel(self, waveforms: np.ndarray) -> np.ndarray:
        """Return the frames (frame, mel) in dB of a waveform (sample,), or (clip, frame, mel) of (clip, sample)."""
        if waveforms.ndim > 1:
            return np.stack([self.log_mel(waveform) for waveform in waveforms])
        decibels = np.empty((self.num_frames(len(waveforms)), self.params.n_mels), dtype=np.float32)
        if not len(decibels):
            return decibels
        padded = np.pad(waveforms.astype(np.float32, copy=False), self.params.n_fft // 2, mode="reflect")
        floor = np.float32(10 ** (self.params.log_floor / 10))
        windows = sliding_windows(padded, self.params.n_fft, self.params.hop_length)

        def taper(frames: slice, out: np.ndarray) -> None:
            np.multiply(windows[frames], self._window, out=out)

        for frames, powers in self._filters.band_powers(len(decibels), self.params.n_fft, taper):
            np.maximum(powers, floor, out=powers)
            decibels[frames] = np.log10(powers, out=powers)
        decibels *= 10
        return decibels


def mel_filters(params: MelParams) -> np.ndarray:
    """Return the filters (mel, bin), triangles that are linear in Hz, as `librosa.filters.mel`."""
    low, high = to_mel(np.array([params.f_min, params.f_max]), params.mel_scale)
    corners = _to_hertz(np.linspace(low, high, params.n_mels + 2), params.mel_scale)[:, None]
    bins = np.fft.rfftfreq(params.n_fft, 1 / params.sample_rate)
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]
    weights = np.maximum(0, np.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)))
    if params.norm == "slaney":
        weights *= 2 / (right - left)
    return np.asarray(weights)


# Slaney's scale (Auditory Toolbox, 1998): linear up to 1 kHz, 15 mel there; above, 27 mel a factor of 6.4.
_LINEAR, _KNEE, _KNEE_MEL, _LOG_STEP = 200 / 3, 1000.0, 15.0, np.log(6.4) / 27


def to_mel(hertz: np.ndarray, scale: str) -> np.ndarray:
    """Return frequencies in Hz on the mel scale `slaney` or `htk`; Kaldi's is htk's in another unit."""
    if scale == "htk":
        return np.asarray(2595 * np.log10(1 + hertz / 700))
    above = _KNEE_MEL + np.log(np.maximum(hertz, _KNEE) / _KNEE) / _LOG_STEP
    return np.where(hertz < _KNEE, hertz / _LINEAR, above)


def _to_hertz(mel: np.ndarray, scale: str) -> np.ndarray:
    if scale == "htk":
        return np.asarray(700 * (10 ** (mel / 2595) - 1))
    above = _KNEE * np.exp(_LOG_STEP * (np.maximum(mel, _KNEE_MEL) - _KNEE_MEL))
    return np.where(mel < _KNEE_MEL, mel * _LINEAR, above)
