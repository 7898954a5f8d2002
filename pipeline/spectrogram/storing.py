"""Quantisation of log-mel values for storage, and its inverse: plain floats, or 256 steps over a stated range.

Conventions: `facts` are those of the artifact: `dtype`, `scale` and `offset`. Stored values times `scale` plus `offset` are
values in the front end's units.
"""

from typing import Any

import numpy as np


def store(log_mel: np.ndarray, facts: dict[str, Any]) -> tuple[np.ndarray, int]:
    """Return log-mel frames as they are stored, and how many values lay outside the range of uint8."""
    if facts["dtype"] != "uint8":
        return log_mel.astype(facts["dtype"]), 0
    steps = np.rint((log_mel - np.float32(facts["offset"])) / np.float32(facts["scale"]))
    return np.clip(steps, 0, 255).astype(np.uint8), int(((steps < 0) | (steps > 255)).sum())


def restore(stored: np.ndarray, facts: dict[str, Any]) -> np.ndarray:
    """Return stored frames as float32 log-mel values in the front end's units."""
    values = stored.astype(np.float32)
    if facts["dtype"] == "uint8":
        values *= np.float32(facts["scale"])
        values += np.float32(facts["offset"])
    return values
