"""Kaldi's log-mel filterbank, the input of the audio spectrogram transformer (Gong et al., 2021) and many speech models.

Conventions: waveforms (sample,) or (clip, sample) float32 in [-1, 1]; log-mel (frame, mel) or (clip, frame, mel) float32,
natural log of power. Windows lie wholly within the clip (Kaldi's snip_edges): 1 + (num_samples - win_length) // hop_length.

Each clip's mean is removed first, as in the AST's loader; then, window by window: mean removed, pre-emphasis (the first
sample as its own predecessor), symmetric Hann window, power spectrum, triangles of equal width on the mel scale
1127 ln(1 + f / 700), log with the floor float32 eps.

Equal to `torchaudio.compliance.kaldi.fbank` (htk_compat=True, use_energy=False, window_type="hanning", dither=0) within 0.01
in the natural log on the clips of ESC-10 (largest difference 0.005), and on any signal where a band has at least 1e-7 of the
power of its frame's loudest. The rest is float32 rounding: torchaudio's own results in float32 and float64 differ as much.
"""

import math
from typing import Literal, Self

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from pipeline.artifacts.spectrogram import FrontEndMetadata
from pipeline.spectrogram.filterbank import FilterBank, num_windows, sliding_windows
from pipeline.spectrogram.front_end import FrontEnd, FrontEndSection, Inversion

_FLOOR = float(np.finfo(np.float32).eps)  # of a band's power


class KaldiParams(FrontEndSection):
    """Settings of the Kaldi filterbank; 16 kHz, 400, 160, 512, 128, 20 Hz to 8 kHz and 0.97 are those of the AST."""

    kind: Literal["kaldi"]
    sample_rate: PositiveInt  # Hz
    win_length: PositiveInt  # samples
    hop_length: PositiveInt  # samples
    n_fft: PositiveInt  # samples, a power of two: Kaldi rounds win_length up to the next one
    n_mels: PositiveInt
    f_min: NonNegativeFloat  # Hz
    f_max: PositiveFloat  # Hz
    pre_emphasis: float = Field(ge=0, le=1)

    @property
    def frame_rate(self) -> float:
        return self.sample_rate / self.hop_length

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.win_length < 2:
            raise ValueError(f"win_length {self.win_length} must be at least 2")
        if self.n_fft & (self.n_fft - 1) or self.n_fft < self.win_length:
            raise ValueError(f"n_fft {self.n_fft} must be a power of two, at least win_length {self.win_length}")
        if not self.f_min < self.f_max <= self.sample_rate / 2:
            raise ValueError(
                f"f_min {self.f_min} < f_max {self.f_max} <= half of sample_rate {self.sample_rate} must hold"
            )
        return self


class KaldiFrontEnd(FrontEnd):
    """Front end that computes Kaldi's log-mel frames of waveforms."""

    Params = KaldiParams

    def __init__(self, params: KaldiParams) -> None:
        self.params = params
        self.min_samples = params.win_length
        self._window = np.hanning(params.win_length).astype(np.float32)
        self._filters = FilterBank(mel_filters(params), params.n_fft)
        self.empty_bands = self._filters.empty_bands  # without any FFT bin: they stay at the floor

    @property
    def metadata(self) -> FrontEndMetadata:
        """Return the metadata that artifacts of these frames record."""
        params = self.params
        return {
            "front_end": "kaldi",
            "units": "ln(power)",
            "sample_rate": params.sample_rate,
            "n_fft": params.n_fft,
            "win_length": params.win_length,
            "hop_length": params.hop_length,
            "n_mels": params.n_mels,
            "f_min": params.f_min,
            "f_max": params.f_max,
            "log_floor": float(np.log(_FLOOR)),
            "frame_rate": params.frame_rate,
            "params": params.model_dump(),
        }

    @property
    def inversion(self) -> Inversion:
        params = self.params
        return Inversion(
            filters=mel_filters(params).astype(np.float32),
            window=np.hanning(params.win_length),
            log_base=math.e,
            pre_emphasis=params.pre_emphasis,
            before=params.win_length // 2,
        )

    def num_frames(self, num_samples: int) -> int:
        """Return the number of frames of a clip of `num_samples`."""
        return num_windows(num_samples, self.params.win_length, self.params.hop_length)

    def log_mel(self, waveforms: np.ndarray) -> np.ndarray:
        """Return the log-mel frames (frame, mel) of a waveform (sample,), or (clip, frame, mel) of (clip, sample)."""
        if waveforms.ndim > 1:
            return np.stack([self.log_mel(waveform) for waveform in waveforms])
        params = self.params
        centred = waveforms.astype(np.float32, copy=False) - np.float32(waveforms.mean(dtype=np.float64))
        log_mel = np.empty((self.num_frames(len(centred)), params.n_mels), dtype=np.float32)
        # Windows overlap, so pre-emphasis is applied once to the waveform and not in each window. The two differ only in a
        # window's first sample, which the Hann window sets to 0, provided that the windows' means are removed too.
        emphasised = np.empty_like(centred)
        emphasised[:1] = centred[:1]
        np.multiply(centred[:-1], np.float32(-params.pre_emphasis), out=emphasised[1:])
        emphasised[1:] += centred[1:]
        plain = sliding_windows(centred, params.win_length, params.hop_length)
        windows = sliding_windows(emphasised, params.win_length, params.hop_length)

        def taper(frames: slice, out: np.ndarray) -> None:
            means = plain[frames].mean(axis=1, keepdims=True)
            np.subtract(windows[frames], means * np.float32(1 - params.pre_emphasis), out=out)
            out *= self._window

        for frames, powers in self._filters.band_powers(len(log_mel), params.win_length, taper):
            np.maximum(powers, np.float32(_FLOOR), out=powers)
            log_mel[frames] = np.log(powers, out=powers)
        return log_mel


def mel_filters(params: KaldiParams) -> np.ndarray:
    """Return Kaldi's filters (mel, bin), triangles that are linear in mel; the bin at half the sample rate has weight 0."""
    low, high = _mel(np.array([params.f_min, params.f_max]))
    width = (high - low) / (params.n_mels + 1)
    left = low + width * np.arange(params.n_mels)[:, None]
    bins = _mel(np.arange(params.n_fft // 2) * params.sample_rate / params.n_fft)
    rising, falling = (bins - left) / width, (left + 2 * width - bins) / width
    return np.pad(np.maximum(0, np.minimum(rising, falling)), ((0, 0), (0, 1)))


def _mel(hertz: np.ndarray) -> np.ndarray:
    return np.asarray(1127.0 * np.log1p(hertz / 700.0))
