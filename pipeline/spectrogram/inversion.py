"""Inversion of log-mel frames to a waveform.

Conventions: log-mel (frame, mel) float32 in the front end's units; band powers (frame, mel) and bin powers (frame, bin) are
linear; waveforms (sample,) float32 at the front end's rate, as long as its frames say, so that frame t of the waveform's own
log-mel is frame t of the log-mel that it was made from.

Two things are lost on the way to log-mel. How a band's power is spread over the bins below its triangle is guessed by
non-negative factors (Lee and Seung, 2001: the rule for the Kullback-Leibler divergence, which weighs quiet bands like loud
ones). The phases are found by Griffin and Lim's method (1984) with momentum (Perraudin et al., 2013), as torchaudio has it;
librosa has the same, and compiles for half a minute when a fresh machine first asks for it.
Pre-emphasis stays on until the phases are found, so that high frequencies count there as they do for the front end.
"""

import math

import numpy as np

from pipeline.spectrogram import kaldi, mel
from pipeline.spectrogram.kaldi import KaldiParams
from pipeline.spectrogram.mel import MelParams

# Measured on 12 clips of ESC-10 (5 s, Kaldi, 128 bands), one thread: with 8, 16 and 32 iterations the log-mel of the result
# is 1.5, 1.2 and 1.0 dB (root mean square, within 60 dB of the clip's loudest) from the one asked for; 32 take 0.2 s a clip.
_ITERATIONS = 32
_SPREADING = 30  # updates of the bin powers, 15 ms per clip; their bands are then 0.03 dB from those asked for
_SMALLEST = 1e-20  # of a power; keeps divisions finite


class Inverter:
    """Turns log-mel frames of one front end back into waveforms."""

    def __init__(self, params: KaldiParams | MelParams) -> None:
        """Take the front end's params, as the metadata of its artifacts hold them."""
        self._params = params
        # `filters` (mel, bin) float32
        if isinstance(params, KaldiParams):
            self.filters = kaldi.mel_filters(params).astype(np.float32)
            self._window = np.hanning(params.win_length)
            self._base, self._pre_emphasis = math.e, params.pre_emphasis
            self.before = params.win_length // 2  # samples of the clip before the middle of its first window
        else:
            self.filters = mel.mel_filters(params).astype(np.float32)
            self._window = np.hanning(params.win_length + 1)[:-1]
            self._base, self._pre_emphasis = 10 ** (1 / 10), 0.0
            self.before = 0

    @property
    def sample_rate(self) -> int:
        return self._params.sample_rate

    @property
    def hop_length(self) -> int:
        return self._params.hop_length

    def middle(self, frame: float) -> float:
        """Return the sample in the middle of a frame, or between two."""
        return self.before + frame * self._params.hop_length

    def band_powers(self, log_mel: np.ndarray) -> np.ndarray:
        """Return the powers (frame, mel) that log-mel frames stand for."""
        return np.exp(log_mel * np.float32(math.log(self._base)), dtype=np.float32)

    def bin_powers(self, log_mel: np.ndarray) -> np.ndarray:
        """Return powers (frame, bin) of the FFT whose bands are about those of log-mel frames; bins of no band are 0."""
        from scipy.sparse import csr_array

        filled = self.filters.any(axis=1)  # a band so narrow that no bin falls into it says nothing
        filters = csr_array(self.filters[filled])  # (mel, bin)
        wanted = np.ascontiguousarray(self.band_powers(log_mel)[:, filled].T)  # (mel, frame)
        weights = self.filters.sum(axis=0)[:, None]  # (bin, 1)
        weights[weights == 0] = np.inf
        # The start: a bin has the mean power of the bands that it is in.
        powers = (filters.T @ (wanted / self.filters[filled].sum(axis=1, keepdims=True))) / weights
        for _ in range(_SPREADING):
            powers *= (filters.T @ (wanted / np.maximum(filters @ powers, _SMALLEST))) / weights
        return np.asarray(powers.T, dtype=np.float32)

    def waveform(self, log_mel: np.ndarray, *, seed: int) -> np.ndarray:
        """Return a waveform (sample,) whose log-mel comes near `log_mel` (frame, mel); `seed` is of the first phases."""
        import torch  # here: it takes seconds, and only those who listen need it
        import torchaudio.functional
        from scipy.signal import lfilter

        params = self._params
        around = -(-params.n_fft // (2 * params.hop_length))  # frames, so that the first and last window end inside
        magnitudes = np.sqrt(np.pad(self.bin_powers(log_mel), ((around, around), (0, 0)), mode="edge"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            emphasised = torchaudio.functional.griffinlim(
                torch.from_numpy(np.ascontiguousarray(magnitudes.T)),
                torch.from_numpy(self._window.astype(np.float32)),
                n_fft=params.n_fft,
                hop_length=params.hop_length,
                win_length=params.win_length,
                power=1.0,
                n_iter=_ITERATIONS,
                momentum=0.99,
                length=None,
                rand_init=True,
            ).numpy()
        plain = lfilter([1.0], [1.0, -self._pre_emphasis], emphasised) if self._pre_emphasis else emphasised
        start = around * params.hop_length - self.before
        return np.asarray(plain[start : start + self.num_samples(len(log_mel))], dtype=np.float32)

    def num_samples(self, num_frames: int) -> int:
        """Return how many samples per clip of so many frames has, at least: its last hop may have more."""
        return (num_frames - 1) * self._params.hop_length + max(1, 2 * self.before)
