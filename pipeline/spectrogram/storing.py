"""Quantisation of log-mel values for storage, and its inverse: plain floats, or 256 steps over a stated range.

Conventions: `metadata` is the artifact's, with `dtype`, `scale` and `offset`. Stored values times `scale` plus `offset` are
values in the front end's units.
"""

import numpy as np

from pipeline.artifacts.spectrogram import SpectrogramMetadata


def store(log_mel: np.ndarray, metadata: SpectrogramMetadata) -> tuple[np.ndarray, int]:
    """Return log-mel frames as they are stored, and the number of values clipped to the range of uint8."""
    if metadata["dtype"] != "uint8":
        return log_mel.astype(metadata["dtype"]), 0
    steps = np.rint((log_mel - np.float32(metadata["offset"])) / np.float32(metadata["scale"]))
    return np.clip(steps, 0, 255).astype(np.uint8), int(((steps < 0) | (steps > 255)).sum())


def restore(stored: np.ndarray, metadata: SpectrogramMetadata) -> np.ndarray:
    """Return stored frames as float32 log-mel values in the front end's units."""
    values = stored.astype(np.float32)
    if metadata["dtype"] == "uint8":
        values *= np.float32(metadata["scale"])
        values += np.float32(metadata["offset"])
    return values
