"""Bandwidth of a waveform: the highest frequency at which there is sound.

Recordings from telephones, or from lossy formats at low rates, end at 4 kHz or so whatever rate their files have. Where some
classes of a corpus have a narrower band than others, models learn the band.
"""

import numpy as np

_FRAME = 1024  # samples, 16 Hz a bin at 16 kHz
_MOST_FRAMES = 4096  # spread over a long clip: they bound the time that it takes
_RANGE = 1e-6  # of the loudest bin's power, 60 dB: above the noise of 16 bits beside sounds of usual loudness


def measure_bandwidth(waveform: np.ndarray, sample_rate: int) -> float:
    """Return the highest frequency in Hz whose mean power is within 60 dB of the loudest frequency's; 0 of silence.

    `waveform` (sample,) float32 is at `sample_rate`, so that nothing above half of it is found.
    """
    starts = np.arange(max(1, len(waveform) // _FRAME)) * _FRAME
    starts = starts[:: max(1, len(starts) // _MOST_FRAMES)]
    padded = np.pad(waveform, (0, max(0, _FRAME - len(waveform))))
    window = np.hanning(_FRAME).astype(np.float32)
    power = np.zeros(_FRAME // 2 + 1)
    for first in range(0, len(starts), 64):  # the copies of 64 frames fit into a processor's cache
        frames = padded[starts[first : first + 64, None] + np.arange(_FRAME)]
        frames = (frames - frames.mean(axis=1, keepdims=True)) * window  # a constant is no sound
        power += np.square(np.abs(np.fft.rfft(frames))).sum(axis=0)
    if not power.any():
        return 0.0
    return float(np.flatnonzero(power >= _RANGE * power.max())[-1] * sample_rate / _FRAME)
