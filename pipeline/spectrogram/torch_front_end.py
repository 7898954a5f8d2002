"""Front ends as torch modules, for exported graphs: from a batch of waveforms to the frames that a model was trained on.

Conventions: waveforms (batch, sample) float32 at the front end's rate, all of one length, at least `min_samples`; frames
(batch, frame, mel) float32 in the front end's units, as a reader restores them from storage.

The steps are those of the front ends in `pipeline/spectrogram`, but for the Fourier transform, which is two matrix products:
graph formats have no FFT of real input that all runtimes share. Frames differ from stored ones by the rounding of float32:
by up to one step of the stored type where a value lies between two.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.artifacts.spectrogram import QUANTISED, SpectrogramMetadata
from pipeline.errors import SonolexError
from pipeline.spectrogram.front_end import FrontEnd
from pipeline.spectrogram.kaldi import KaldiFrontEnd
from pipeline.spectrogram.log_mel import cosine_transform
from pipeline.spectrogram.mel import INT16, MelFrontEnd, mel_window
from pipeline.spectrogram.mfcc import MfccFrontEnd
from pipeline.spectrogram.registry import recorded_front_end
from pipeline.spectrogram.waveform import WaveformFrontEnd


class StoredFrames(nn.Module):
    """Module that computes the frames of waveforms as a spectrogram stores them."""

    def __init__(self, log_mel: nn.Module, front_end: FrontEnd, metadata: SpectrogramMetadata) -> None:
        super().__init__()
        self.log_mel = log_mel
        self.min_samples, self.num_frames, self.hop = (
            front_end.min_samples,
            front_end.num_frames,
            metadata["hop_length"],
        )
        self._dtype, self._scale, self._offset = metadata["dtype"], metadata["scale"], metadata["offset"]

    def forward(self, waveforms: Tensor) -> Tensor:
        return self._as_stored(self.log_mel(waveforms))

    def samples_of(self, num_frames: int) -> int:
        """Return how many samples a clip of so many frames has; of fewer than `min_samples` has, that many."""
        samples = self.min_samples + self.hop * (num_frames - 1)
        surplus = self.num_frames(samples) - num_frames
        return max(samples - self.hop * surplus, self.min_samples)

    def _as_stored(self, log_mel: Tensor) -> Tensor:
        """Round values as storing and restoring them does (`pipeline/spectrogram/storing.py`)."""
        if self._dtype == "float16":
            return log_mel.to(torch.float16).to(torch.float32)
        if self._dtype in QUANTISED:
            steps = torch.round((log_mel - self._offset) / self._scale).clamp(*QUANTISED[self._dtype])
            return steps * self._scale + self._offset
        return log_mel


class BandPowers(nn.Module):
    """Mel-band powers, or magnitudes, (batch, frame, mel) of tapered windows (batch, frame, sample)."""

    def __init__(self, filters: np.ndarray, n_fft: int, length: int, exponent: int = 2) -> None:
        """Build from filters (mel, bin) for an FFT of `n_fft` samples, of windows that have `length` and are padded.

        Bands are sums of magnitudes to the power of `exponent`, 1 or 2.
        """
        super().__init__()
        self._exponent = exponent
        turns = np.outer(np.arange(length), np.arange(n_fft // 2 + 1)) % n_fft / n_fft
        used = filters.any(axis=0)  # bins that no band has cost no product
        for name, matrix in (
            ("cosines", np.cos(2 * np.pi * turns[:, used])),
            ("sines", np.sin(2 * np.pi * turns[:, used])),
            ("filters", filters[:, used].T),
        ):
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(matrix, dtype=np.float32)))

    cosines: Tensor  # (sample, bin)
    sines: Tensor  # (sample, bin)
    filters: Tensor  # (bin, mel)

    def forward(self, windows: Tensor) -> Tensor:
        power = (windows @ self.cosines).square() + (windows @ self.sines).square()
        return (power if self._exponent == 2 else power.sqrt()) @ self.filters


class KaldiLogMel(nn.Module):
    """Kaldi's log-mel frames of waveforms."""

    def __init__(self, front_end: KaldiFrontEnd) -> None:
        super().__init__()
        params, inversion = front_end.params, front_end.inversion
        self._length, self._hop = params.win_length, params.hop_length
        self._pre_emphasis = params.pre_emphasis
        self._floor = float(np.finfo(np.float32).eps)
        self.register_buffer("window", torch.from_numpy(inversion.window.astype(np.float32)))
        self.band_powers = BandPowers(inversion.filters, params.n_fft, params.win_length)

    window: Tensor  # (sample,)

    def forward(self, waveforms: Tensor) -> Tensor:
        mean = waveforms.to(torch.float64).mean(dim=1, keepdim=True).to(torch.float32)
        windows = frame(waveforms - mean, self._length, self._hop)
        centred = windows - windows.mean(dim=2, keepdim=True)
        # The first sample of a window is its own predecessor; the Hann window sets it to 0.
        before = torch.cat([centred[:, :, :1], centred[:, :, :-1]], dim=2)
        powers: Tensor = self.band_powers((centred - self._pre_emphasis * before) * self.window)
        return powers.clamp(min=self._floor).log()


class MelLogMel(nn.Module):
    """Mel spectrogram of waveforms."""

    def __init__(self, front_end: MelFrontEnd) -> None:
        super().__init__()
        self._params = params = front_end.params
        window = mel_window(params)
        self.register_buffer("window", torch.from_numpy(window.astype(np.float32)))
        self.band_powers = BandPowers(front_end.inversion.filters, params.n_fft, len(window), params.exponent)

    window: Tensor  # (sample,)

    def forward(self, waveforms: Tensor) -> Tensor:
        params = self._params
        windows = frame(self._samples(waveforms), len(self.window), params.hop_length)
        bands: Tensor = self.band_powers(windows * self.window)
        if params.log_offset:
            bands = bands + params.log_offset
        bands = bands.clamp(min=params.log_base**params.log_floor)
        return params.log_factor * (bands.log10() if params.log == "decibel" else bands.log())

    def _samples(self, waveforms: Tensor) -> Tensor:
        """Return the samples that windows are cut from; see `MelFrontEnd`."""
        if self._params.int16:
            waveforms = (waveforms * INT16).trunc().clamp(-INT16 - 1, INT16)
        if not self._params.center:
            return waveforms
        half = self._params.n_fft // 2
        return nn.functional.pad(waveforms[:, None], (half, half), mode="reflect")[:, 0]


class ScaledMelLogMel(MelLogMel):
    """Mel spectrogram of waveforms, scaled to 0 to 1 within each clip."""

    def forward(self, waveforms: Tensor) -> Tensor:
        decibels = super().forward(waveforms)
        low, high = decibels.amin((1, 2), keepdim=True), decibels.amax((1, 2), keepdim=True)
        return (decibels - low) / (high - low).clamp(min=float(np.finfo(np.float32).tiny))


class Mfcc(MelLogMel):
    """Mel-frequency cepstral coefficients of waveforms."""

    def __init__(self, front_end: MfccFrontEnd) -> None:
        super().__init__(front_end)
        transform = cosine_transform(front_end.params.n_mels, front_end.params.n_mfcc)
        self.register_buffer("transform", torch.from_numpy(transform))

    transform: Tensor  # (mel, coefficient)

    def forward(self, waveforms: Tensor) -> Tensor:
        return super().forward(waveforms) @ self.transform


class Samples(nn.Module):
    """Frames of the samples themselves."""

    def __init__(self, front_end: WaveformFrontEnd) -> None:
        super().__init__()
        self._hop = front_end.metadata["hop_length"]

    def forward(self, waveforms: Tensor) -> Tensor:
        return frame(waveforms, self._hop, self._hop)


def frame(waveforms: Tensor, length: int, hop: int) -> Tensor:
    """Return the windows (batch, frame, sample) of waveforms that lie wholly within them."""
    count = (waveforms.shape[1] - length) // hop + 1
    starts = torch.arange(count, device=waveforms.device)[:, None] * hop
    return waveforms[:, starts + torch.arange(length, device=waveforms.device)]


_LOG_MEL: dict[str, Callable[..., nn.Module]] = {
    "kaldi": KaldiLogMel,
    "mel": MelLogMel,
    "mfcc": Mfcc,
    "scaled_mel": ScaledMelLogMel,
    "waveform": Samples,
}


def front_end_module(metadata: SpectrogramMetadata) -> StoredFrames:
    """Return the front end behind a spectrogram with this metadata. Raises SonolexError for one that has no module."""
    kind = metadata["front_end"]
    if kind not in _LOG_MEL:
        raise SonolexError(
            f"front end: expected one of {', '.join(_LOG_MEL)}, found {kind}; add its module to "
            f"{__name__}, or export from frames (--input frames)"
        )
    front_end = recorded_front_end(metadata)
    return StoredFrames(_LOG_MEL[kind](front_end), front_end, metadata)
