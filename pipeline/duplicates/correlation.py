"""Correlation of two clips at a lag: how alike the changes of their spectra's shape are in the stretch that is most alike.

Measured on ESC-10, the demo and 300 sounds of instruments (LOG.md): copies are at 0.82 and above, other takes of one source
at 0.78 and below.
"""

from typing import NamedTuple

import numpy as np

from pipeline.duplicates.bands import Scale, is_audible, limit_range, shape_changes

_MEAN = 0.2  # seconds, from whose mean changes are; with a longer one, decays of one instrument are alike
_SHARE = 0.4  # of the shorter clip's audible frames that a stretch has
_LEAST_SECONDS = 0.5  # audible, that a stretch has; shorter clips are compared as a whole
_LEAST_CHANGE = 0.5  # dB, root mean square; a stretch below it is constant
_REFINED = 5  # lags on either side
_HOPELESS = 0.15  # correlation; below it no lag near is tried


class Match(NamedTuple):
    """How two clips match."""

    correlation: float  # -1 to 1
    lag: int  # frames by which the first clip has later what the second has; negative: earlier


def correlate(one: np.ndarray, other: np.ndarray, lag: int, scale: Scale) -> Match:
    """Return the match of two clips' bands (frame, band) at the lag that is best, from the given one uphill."""
    best = Match(correlate_at(one, other, lag, scale), lag)
    if best.correlation < _HOPELESS:
        return best
    for step in (1, -1):
        for _ in range(_REFINED):
            near = best.lag + step
            match = Match(correlate_at(one, other, near, scale), near)
            if match.correlation <= best.correlation:
                break
            best = match
    return best


def correlate_at(one: np.ndarray, other: np.ndarray, lag: int, scale: Scale) -> float:
    """Return the correlation of two clips' bands (frame, band) at a lag, in their most similar stretch.

    A stretch has 40 % of the shorter clip's audible frames; only frames that are audible in both clips count. 0 where too
    few of them overlap, or where all stretches are constant.
    """
    first, last = max(0, lag), min(len(one), len(other) + lag)
    if last <= first:
        return 0.0
    parts = [limit_range(bands) for bands in (one[first:last], other[first - lag : last - lag])]
    audible = is_audible(parts[0]) & is_audible(parts[1])
    length = _stretch(one, other, scale)
    changes = [shape_changes(part, audible, scale.frames(_MEAN)) for part in parts]
    if changes[0] is None or changes[1] is None or audible.sum() < length:
        return 0.0
    return _best_stretch(changes[0][audible], changes[1][audible], length)


def _stretch(one: np.ndarray, other: np.ndarray, scale: Scale) -> int:
    """Return the number of audible frames in a stretch."""
    shorter = min(int(is_audible(limit_range(bands)).sum()) for bands in (one, other))
    return max(int(_SHARE * shorter), min(scale.frames(_LEAST_SECONDS), shorter))


def _best_stretch(one: np.ndarray, other: np.ndarray, length: int) -> float:
    """Return the highest correlation of `length` consecutive rows of two arrays (frame, band)."""
    products, energies, others = (_sums(*pair, length) for pair in ((one, other), (one, one), (other, other)))
    varied = np.minimum(energies, others) > _LEAST_CHANGE**2 * length * one.shape[1]
    correlations = products / np.sqrt(np.where(varied, energies * others, 1.0))
    return float(np.where(varied, correlations, 0.0).max())


def _sums(one: np.ndarray, other: np.ndarray, length: int) -> np.ndarray:
    """Return the sums of products over `length` consecutive rows."""
    rows = np.einsum("fb,fb->f", one, other, dtype=np.float64)
    sums = np.concatenate([[0.0], np.cumsum(rows)])
    ends: np.ndarray = sums[length:] - sums[:-length]
    return ends
