"""Inversion of log-mel frames to a waveform.

Conventions: log-mel (frame, mel) float32 in the front end's units; band powers (frame, mel) and bin powers (frame, bin) are
linear; waveforms (sample,) float32 at the front end's rate, with frame t of the waveform's own log-mel aligned with frame t
of the given log-mel.

Log-mel frames lack two things. The distribution of a band's power over its bins is estimated by non-negative matrix
factorisation (Lee and Seung, 2001; the update for the Kullback-Leibler divergence, which weighs quiet bands like loud ones).
The phases are estimated by Griffin and Lim's method (1984) with momentum (Perraudin et al., 2013), in torchaudio's
implementation; librosa's needs half a minute of compilation on first use. Pre-emphasis is undone only after phase
estimation, so that high frequencies have the same weight as in the front end.
"""

import math

import numpy as np

from pipeline.spectrogram.front_end import FrontEnd

# Measured on 12 clips of ESC-10 (5 s, Kaldi, 128 bands), one thread: with 8, 16 and 32 iterations the log-mel of the result
# is 1.5, 1.2 and 1.0 dB (root mean square, within 60 dB of the clip's loudest) from the given one; 32 take 0.2 s per clip.
_ITERATIONS = 32
_SPREADING = 30  # updates of the bin powers, 15 ms per clip; their bands are then 0.03 dB from the given ones
_SMALLEST = 1e-20  # of a power; keeps divisions finite


class Inverter:
    """Converter from log-mel frames of one front end to waveforms."""

    def __init__(self, front_end: FrontEnd) -> None:
        self._metadata, inversion = front_end.metadata, front_end.inversion
        self.filters, self.before = inversion.filters, inversion.before
        self._window, self._base, self._pre_emphasis = inversion.window, inversion.log_base, inversion.pre_emphasis
        self._exponent, self._offset, self._scale = inversion.exponent, inversion.offset, inversion.scale

    @property
    def sample_rate(self) -> int:
        return self._metadata["sample_rate"]

    @property
    def hop_length(self) -> int:
        return self._metadata["hop_length"]

    def middle(self, frame: float) -> float:
        """Return the sample at the centre of a frame; fractional frames are allowed."""
        return self.before + frame * self.hop_length

    def band_powers(self, log_mel: np.ndarray) -> np.ndarray:
        """Return the band powers (frame, mel) of log-mel frames; of sums of magnitudes, the squares."""
        return self._to_powers(self._bands(log_mel))

    def bin_powers(self, log_mel: np.ndarray) -> np.ndarray:
        """Return estimated FFT powers (frame, bin) of log-mel frames; bins outside all bands are 0."""
        from scipy.sparse import csr_array

        filled = self.filters.any(axis=1)  # bands so narrow that no bin falls into them carry no information
        filters = csr_array(self.filters[filled])  # (mel, bin)
        wanted = np.ascontiguousarray(self._bands(log_mel)[:, filled].T)  # (mel, frame)
        weights = self.filters.sum(axis=0)[:, None]  # (bin, 1)
        weights[weights == 0] = np.inf
        # Initial value: the mean power of the bands that a bin is in.
        powers = (filters.T @ (wanted / self.filters[filled].sum(axis=1, keepdims=True))) / weights
        for _ in range(_SPREADING):
            powers *= (filters.T @ (wanted / np.maximum(filters @ powers, _SMALLEST))) / weights
        return self._to_powers(np.asarray(powers.T, dtype=np.float32))

    def _bands(self, log_mel: np.ndarray) -> np.ndarray:
        """Return the bands (frame, mel) of log-mel frames, as the filters give them: powers or magnitudes."""
        bands = np.exp(log_mel * np.float32(math.log(self._base)), dtype=np.float32)
        return np.maximum(bands - np.float32(self._offset), 0) if self._offset else bands

    def _to_powers(self, values: np.ndarray) -> np.ndarray:
        return values if self._exponent == 2 else np.square(values)

    def waveform(self, log_mel: np.ndarray, *, seed: int) -> np.ndarray:
        """Return a waveform (sample,) whose log-mel approximates `log_mel` (frame, mel); `seed` draws the initial phases."""
        import torch  # here: the import takes seconds, and only resynthesis needs it
        import torchaudio.functional
        from scipy.signal import lfilter

        n_fft, hop_length = self._metadata["n_fft"], self.hop_length
        around = -(-n_fft // (2 * hop_length))  # frames, so that the first and last window end inside
        magnitudes = np.sqrt(np.pad(self.bin_powers(log_mel), ((around, around), (0, 0)), mode="edge"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            emphasised = torchaudio.functional.griffinlim(
                torch.from_numpy(np.ascontiguousarray(magnitudes.T)),
                torch.from_numpy(self._window.astype(np.float32)),
                n_fft=n_fft,
                hop_length=hop_length,
                win_length=self._metadata["win_length"],
                power=1.0,
                n_iter=_ITERATIONS,
                momentum=0.99,
                length=None,
                rand_init=True,
            ).numpy()
        plain = lfilter([1.0], [1.0, -self._pre_emphasis], emphasised) if self._pre_emphasis else emphasised
        start = around * hop_length - self.before
        return np.asarray(plain[start : start + self.num_samples(len(log_mel))] / self._scale, dtype=np.float32)

    def num_samples(self, num_frames: int) -> int:
        """Return the smallest number of samples of a clip of `num_frames`."""
        return (num_frames - 1) * self.hop_length + max(1, 2 * self.before)
