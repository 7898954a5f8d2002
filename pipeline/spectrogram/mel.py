"""Log-mel spectrogram, as in librosa, torchaudio and VGGish: any window, rate, band count, scale, norm and logarithm.

Conventions: waveforms (sample,) or (clip, sample) float32 in [-1, 1]; log-mel (frame, mel) or (clip, frame, mel) float32. A
band is the weighted sum of the spectrum's magnitudes (exponent 1) or powers (2); its level is relative to 1, in dB or as
natural logarithm. With int16 samples are integers of 16 bits, so that offsets mean what they do in programs that read these.

With `center` the centre of frame t is sample t * hop_length, and the waveform is reflected at its ends (torchaudio's
default; librosa needs pad_mode="reflect"): 1 + num_samples // hop_length frames, with the window in the middle of n_fft.
Without, windows lie wholly within the clip, padded to n_fft: 1 + (num_samples - win_length) // hop_length.

Equal to `librosa.feature.melspectrogram(power=exponent, center=True, pad_mode="reflect")` + `power_to_db` or, of magnitudes,
`amplitude_to_db`, and to `torchaudio.transforms.MelSpectrogram` + `AmplitudeToDB("power", top_db=None)`, within 0.01 dB
where a band holds more than a millionth of the clip's loudest band; below, all three differ by the rounding of float32.
"""

import math
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from pipeline.artifacts.spectrogram import FrontEndMetadata
from pipeline.spectrogram.filterbank import FilterBank, num_windows, sliding_windows
from pipeline.spectrogram.front_end import FrontEnd, FrontEndSection, Inversion

INT16 = 32767  # that a sample of 1 becomes


class MelParams(FrontEndSection):
    """Settings of the mel spectrogram."""

    kind: Literal["mel"]
    sample_rate: PositiveInt  # Hz
    n_fft: PositiveInt  # samples
    win_length: PositiveInt  # samples, a periodic Hann window
    hop_length: PositiveInt  # samples
    center: bool  # windows are centred on multiples of hop_length; false: they lie wholly within the clip
    int16: bool  # samples are rounded towards 0 to integers of 16 bits
    exponent: Literal[1, 2]  # of the spectrum's magnitudes: 1 = magnitude, 2 = power
    n_mels: PositiveInt
    f_min: NonNegativeFloat  # Hz
    f_max: PositiveFloat  # Hz
    mel_scale: Literal["slaney", "htk"]
    triangles: Literal["hertz", "mel"]  # scale on which the filters' slopes are straight
    norm: Literal["slaney", "none"]  # slaney: triangles of equal area
    log: Literal["decibel", "natural"]
    log_offset: NonNegativeFloat  # that is added to a band before the logarithm
    log_floor: float  # smallest level; -100 dB is torchaudio's

    unrecorded: ClassVar[Mapping[str, object]] = {
        "center": True, "int16": False, "exponent": 2, "triangles": "hertz", "log": "decibel", "log_offset": 0.0
    }  # fmt: skip

    @property
    def frame_rate(self) -> float:
        return self.sample_rate / self.hop_length

    @property
    def log_factor(self) -> float:
        """Level for each log10 (decibel) or ln (natural) of a band."""
        return 20 / self.exponent if self.log == "decibel" else 1.0

    @property
    def log_base(self) -> float:
        """Base of the logarithms that levels are."""
        return 10 ** (1 / self.log_factor) if self.log == "decibel" else math.e

    @property
    def units(self) -> str:
        """Units of levels, as in `pipeline/artifacts/spectrogram.py`."""
        return "dB" if self.log == "decibel" else {1: "ln(magnitude)", 2: "ln(power)"}[self.exponent]

    @property
    def lowest_level(self) -> float:
        """Level of an empty band, in units."""
        return max(self.log_floor, math.log(self.log_offset, self.log_base)) if self.log_offset else self.log_floor

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
    """Front end that computes mel spectrograms of waveforms."""

    Params = MelParams
    params: MelParams

    def __init__(self, params: MelParams) -> None:
        self.params = params
        self.min_samples = (
            params.n_fft // 2 + 1 if params.center else params.win_length
        )  # reflection needs half a window
        self._window = mel_window(params).astype(np.float32)
        self._filters = FilterBank(mel_filters(params), params.n_fft, exponent=params.exponent)
        self.empty_bands = self._filters.empty_bands  # without any FFT bin: they stay at the floor

    @property
    def metadata(self) -> FrontEndMetadata:
        """Return the metadata that artifacts of these frames record."""
        params = self.params
        return {
            "front_end": params.kind,
            "units": params.units,
            "sample_rate": params.sample_rate,
            "n_fft": params.n_fft,
            "win_length": params.win_length,
            "hop_length": params.hop_length,
            "n_mels": params.n_mels,
            "f_min": params.f_min,
            "f_max": params.f_max,
            "log_floor": params.lowest_level,
            "frame_rate": params.frame_rate,
            "params": params.recorded(),
        }

    @property
    def inversion(self) -> Inversion:
        return Inversion(
            filters=mel_filters(self.params).astype(np.float32),
            window=_hann(self.params.win_length),
            log_base=self.params.log_base,
            pre_emphasis=0.0,
            before=0 if self.params.center else self.params.win_length // 2,
            exponent=self.params.exponent,
            offset=self.params.log_offset,
            scale=float(INT16) if self.params.int16 else 1.0,
        )

    def num_frames(self, num_samples: int) -> int:
        """Return the number of frames of a clip of `num_samples`; 0 when it is too short."""
        if num_samples < self.min_samples:
            return 0
        padding = 2 * (self.params.n_fft // 2) if self.params.center else 0
        return num_windows(num_samples + padding, len(self._window), self.params.hop_length)

    def log_mel(self, waveforms: np.ndarray) -> np.ndarray:
        """Return the frames (frame, mel) of a waveform (sample,), or (clip, frame, mel) of (clip, sample)."""
        if waveforms.ndim > 1:
            return np.stack([self.log_mel(waveform) for waveform in waveforms])
        params, samples = self.params, self._samples(waveforms)
        levels = np.empty((self.num_frames(len(waveforms)), params.n_mels), dtype=np.float32)
        logarithm = np.log10 if params.log == "decibel" else np.log
        floor = np.float32(params.log_base**params.log_floor)
        for frames, bands in self._filters.band_powers(len(levels), len(self._window), self._taper(samples)):
            if params.log_offset:
                np.add(bands, np.float32(params.log_offset), out=bands)
            np.maximum(bands, floor, out=bands)
            levels[frames] = logarithm(bands, out=bands)
        levels *= params.log_factor
        return levels

    def spectra(self, waveform: np.ndarray) -> np.ndarray:
        """Return the spectra (frame, bin) float32 of a waveform (sample,): magnitudes to the power of `exponent`."""
        spectra = np.empty((self.num_frames(len(waveform)), self.params.n_fft // 2 + 1), dtype=np.float32)
        taper = self._taper(self._samples(waveform))
        for frames, block in self._filters.spectra(len(spectra), len(self._window), taper):
            spectra[frames] = block
        return spectra

    def _samples(self, waveform: np.ndarray) -> np.ndarray:
        """Return the samples that windows are cut from: reflected at the ends where windows are centred."""
        samples = waveform.astype(np.float32, copy=False)
        if self.params.int16:
            samples = np.clip(np.trunc(samples * np.float32(INT16)), -INT16 - 1, INT16)
        if not self.params.center or len(samples) < self.min_samples:
            return samples
        return np.pad(samples, self.params.n_fft // 2, mode="reflect")

    def _taper(self, samples: np.ndarray) -> Callable[[slice, np.ndarray], None]:
        windows = sliding_windows(samples, len(self._window), self.params.hop_length)

        def taper(frames: slice, out: np.ndarray) -> None:
            np.multiply(windows[frames], self._window, out=out)

        return taper


def _hann(length: int) -> np.ndarray:
    """Return the periodic Hann window (sample,): the symmetric one of one more point, without the last."""
    return np.hanning(length + 1)[:-1] if length > 1 else np.ones(1)


def mel_window(params: MelParams) -> np.ndarray:
    """Return the window (sample,) of a frame: of n_fft samples where windows are centred, else of win_length."""
    if not params.center:
        return _hann(params.win_length)
    left = (params.n_fft - params.win_length) // 2
    return np.pad(_hann(params.win_length), (left, params.n_fft - params.win_length - left))


def mel_filters(params: MelParams) -> np.ndarray:
    """Return the filters (mel, bin): triangles that are linear in Hz, as `librosa.filters.mel`, or in mel, as VGGish's."""
    low, high = to_mel(np.array([params.f_min, params.f_max]), params.mel_scale)
    corners = np.linspace(low, high, params.n_mels + 2)[:, None]  # mel
    hertz = _to_hertz(corners, params.mel_scale)
    bins = np.fft.rfftfreq(params.n_fft, 1 / params.sample_rate)
    if params.triangles == "mel":
        weights = _triangles(corners, to_mel(bins, params.mel_scale))
    else:
        weights = _triangles(hertz, bins)
    if params.norm == "slaney":
        weights *= 2 / (hertz[2:] - hertz[:-2])
    return weights


def _triangles(corners: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return triangles of height 1 over every three consecutive corners (corner, 1), at places (place,)."""
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]
    rising, falling = (places - left) / (centre - left), (right - places) / (right - centre)
    return np.asarray(np.maximum(0, np.minimum(rising, falling)))


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
