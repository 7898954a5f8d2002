"""Common steps of all front ends: windows of a waveform, and their mel-band powers.

Conventions: a waveform is (sample,), windows are (frame, sample), band powers (frame, mel), all float32. A filter matrix is
(mel, bin) over the n_fft / 2 + 1 bins of a real FFT.

Measured on 10 s of 16 kHz, 128 bands, one thread: the sparse product takes 0.2 ms per clip, a dense one 0.9 ms, the FFT 1.1
ms. The sparse product also adds the bins of a band in one fixed order, so a clip's frames are identical to the bit in any
batch and on any number of threads.
"""

from collections.abc import Callable, Iterator

import numpy as np

_BLOCK = 256  # frames per block: fits the processor's cache, and bounds memory on hour-long clips


def num_windows(num_samples: int, length: int, hop: int) -> int:
    """Return how many windows of `length` samples, `hop` apart, lie wholly within `num_samples`."""
    return 1 + (num_samples - length) // hop if num_samples >= length else 0


def sliding_windows(waveform: np.ndarray, length: int, hop: int) -> np.ndarray:
    """Return a view (frame, sample) of the waveform's windows, without copying."""
    count = num_windows(len(waveform), length, hop)
    step = waveform.strides[0]
    return np.lib.stride_tricks.as_strided(waveform, (count, length), (hop * step, step), writeable=False)


class FilterBank:
    """Sparse matrix of mel filters, for power spectra or magnitude spectra."""

    def __init__(self, weights: np.ndarray, n_fft: int, *, exponent: int = 2) -> None:
        """Build the sparse matrix from `weights` (mel, bin) for an FFT of `n_fft` samples.

        Spectra are magnitudes to the power of `exponent`, 1 or 2.
        """
        from scipy.sparse import csr_array  # here: stages that only read frames need no scipy

        if weights.shape[1] != n_fft // 2 + 1:
            raise ValueError(f"expected {n_fft // 2 + 1} bins for n_fft {n_fft}, found {weights.shape[1]}")
        self._n_fft, self._exponent = n_fft, exponent
        self._weights = csr_array(weights.astype(np.float32))
        self.empty_bands = [int(band) for band in np.flatnonzero(~weights.any(axis=1))]

    def band_powers(
        self, count: int, length: int, taper: Callable[[slice, np.ndarray], None]
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield blocks of `count` frames, as a slice and their band powers (frame, mel), which the caller may keep.

        `taper(frames, out)` writes the tapered windows of frames into an array (frame, `length`).
        """
        for frames, spectra in self.spectra(count, length, taper):
            yield frames, (self._weights @ np.ascontiguousarray(spectra.T)).T

    def spectra(
        self, count: int, length: int, taper: Callable[[slice, np.ndarray], None]
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield the same blocks with their spectra (frame, bin)."""
        from scipy.fft import rfft

        padded = np.zeros((min(_BLOCK, count), self._n_fft), dtype=np.float32)
        for first in range(0, count, _BLOCK):
            frames = slice(first, min(first + _BLOCK, count))
            windows = padded[: frames.stop - first]
            taper(frames, windows[:, :length])
            parts = rfft(windows, axis=1).view(np.float32)  # (frame, real and imaginary of each bin)
            np.square(parts, out=parts)
            power = parts[:, ::2] + parts[:, 1::2]
            yield frames, power if self._exponent == 2 else np.sqrt(power, out=power)
