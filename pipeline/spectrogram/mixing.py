"""Mixing of channels to the one that a front end gets.

Conventions: samples are (sample, channel) float32, a mix (sample,) float32.
"""

import numpy as np

from pipeline.artifacts.spectrogram import Mix

_CANCELLED = 1e-6  # of the channels' mean power, -60 dB: what coders and rounding leave of channels that cancel


class Mixer:
    """Mixes blocks that follow each other. Keeps the mix alone, or with "loudest" all channels."""

    def __init__(self, mix: Mix) -> None:
        self._mix = mix
        self._blocks: list[np.ndarray] = []  # (sample,), or (sample, channel)
        self._power = self._mixed_power = 0.0  # of one channel, and of the mean, times the number of samples

    def add(self, block: np.ndarray) -> None:
        """Add samples (sample, channel)."""
        if self._mix == "loudest":
            self._blocks.append(block)
            return
        mixed = mix_channels(block, self._mix)
        self._blocks.append(mixed)
        if self._mix == "mean" and block.shape[1] > 1:
            self._power += float(np.vdot(block, block)) / block.shape[1]
            self._mixed_power += float(np.vdot(mixed, mixed))

    @property
    def cancels(self) -> bool:
        """Whether the channels leave nothing in their mean, as those do of which one is the other's negative."""
        return self._power > 0 and self._mixed_power < _CANCELLED * self._power

    def mixed(self) -> np.ndarray:
        """Return the mix of all blocks (sample,)."""
        samples = self._blocks[0] if len(self._blocks) == 1 else np.concatenate(self._blocks)
        return mix_channels(samples, self._mix) if self._mix == "loudest" else samples


def mix_channels(samples: np.ndarray, mix: Mix) -> np.ndarray:
    """Return the mean of the channels, the first, the second, or the one with the highest power."""
    if mix == "mean" or samples.shape[1] == 1:
        return _mean(samples)
    if mix == "loudest":
        return np.ascontiguousarray(samples[:, int(np.argmax(np.square(samples).sum(axis=0, dtype=np.float64)))])
    return np.ascontiguousarray(samples[:, 0 if mix == "left" else 1])


def _mean(samples: np.ndarray) -> np.ndarray:
    """Return the mean of the channels.

    Channel by channel, since NumPy's mean over so short an axis takes 20 times as long (half the time of decoding FLAC).
    """
    mixed = samples[:, 0].copy()
    for channel in range(1, samples.shape[1]):
        mixed += samples[:, channel]
    if samples.shape[1] > 1:
        mixed /= np.float32(samples.shape[1])
    return mixed
