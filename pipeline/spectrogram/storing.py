"""Quantisation of log-mel values for storage, and its inverse: plain floats, or steps of integers over a stated range.

Conventions: `metadata` is the artifact's, with `dtype`, `scale` and `offset`. Stored values times `scale` plus `offset` are
values in the front end's units.
"""

import numpy as np

from pipeline.artifacts.spectrogram import QUANTISED, SpectrogramMetadata


def store(log_mel: np.ndarray, metadata: SpectrogramMetadata) -> tuple[np.ndarray, int]:
    """Return log-mel frames as they are stored, and the number of values clipped to the range of integers."""
    dtype = metadata["dtype"]
    if dtype not in QUANTISED:
        return log_mel.astype(dtype), 0
    steps = np.rint((log_mel - np.float32(metadata["offset"])) / np.float32(metadata["scale"]))
    low, high = QUANTISED[dtype]
    return np.clip(steps, low, high).astype(dtype), int(((steps < low) | (steps > high)).sum())


def restore(stored: np.ndarray, metadata: SpectrogramMetadata) -> np.ndarray:
    """Return stored frames as float32 log-mel values in the front end's units."""
    values = stored.astype(np.float32)
    if metadata["dtype"] in QUANTISED:
        values *= np.float32(metadata["scale"])
        values += np.float32(metadata["offset"])
    return values
