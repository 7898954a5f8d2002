"""Landmarks: the instants of a clip at which its sound changes most, each with a coarse vector of the second around it.

A landmark depends on the sound near it alone, so that a copy that is shifted, cut or softer has the same ones (as in audio
fingerprinting; Wang, 2003, "An industrial-strength audio search algorithm"). Vectors of copies are close to each other; of
clips with close vectors, `correlation.py` decides.
"""

from typing import NamedTuple

import numpy as np
from scipy.ndimage import maximum_filter1d

from pipeline.duplicates.bands import Scale, is_audible, limit_range, shape_changes

_VECTOR_BANDS, _VECTOR_STEPS = 8, 10
VECTOR_SIZE = _VECTOR_BANDS * _VECTOR_STEPS

_WINDOW = 1.0  # seconds, of a vector
_CHANGE = 0.1  # seconds, on either side of an instant
_SPACING = 0.75  # seconds in which a landmark has the largest change, on either side


class Landmarks(NamedTuple):
    """The landmarks of a clip."""

    positions: np.ndarray  # (landmark,) int32, in frames
    vectors: np.ndarray  # (landmark, VECTOR_SIZE) float16, of length 1


def find_landmarks(bands: np.ndarray, scale: Scale) -> Landmarks:
    """Return the landmarks of a clip's bands (frame, band), in order of time; none where its sound is constant."""
    peaks = _peaks(_distances(limit_range(bands), scale.frames(_CHANGE)), scale.frames(_SPACING))
    vectors = [_vector(bands, peak, scale) for peak in peaks.tolist()]
    positions = [peak for peak, vector in zip(peaks.tolist(), vectors, strict=True) if vector is not None]
    found = [vector for vector in vectors if vector is not None]
    return Landmarks(
        np.array(positions, dtype=np.int32), np.array(found, dtype=np.float16).reshape(len(found), VECTOR_SIZE)
    )


def _distances(limited: np.ndarray, width: int) -> np.ndarray:
    """Return the squared distance (frame,) between the mean spectra before and after each frame; ends count as silence."""
    padded = np.pad(limited, ((width + 1, width), (0, 0)), constant_values=limited.min())
    sums = np.cumsum(padded, axis=0, dtype=np.float64)
    means = (sums[width:] - sums[:-width]) / width
    distances: np.ndarray = np.square(means[width:] - means[:-width]).sum(axis=1)[: len(limited)]
    return distances


def _peaks(values: np.ndarray, spacing: int) -> np.ndarray:
    """Return the positions of values that are positive, and the largest of all within `spacing`."""
    largest = maximum_filter1d(values, 2 * spacing + 1, mode="constant", cval=0.0)
    return np.flatnonzero((values == largest) & (values > 0))


def _vector(bands: np.ndarray, position: int, scale: Scale) -> np.ndarray | None:
    """Return the changes of shape in the window around a frame, pooled: (VECTOR_SIZE,), of length 1.

    They are 0 beyond the ends of the clip. None where the sound is constant.
    """
    half = scale.frames(_WINDOW / 2)
    first, last = max(0, position - half), min(len(bands), position + half)
    limited = limit_range(bands[first:last])
    changes = shape_changes(limited, is_audible(limited), 2 * half)
    if changes is None:
        return None
    window = np.zeros((2 * half, bands.shape[1]), dtype=np.float32)
    window[first - position + half : last - position + half] = changes
    vector = _pool(_pool(window, _VECTOR_STEPS).T, _VECTOR_BANDS).ravel()
    length = float(np.linalg.norm(vector))
    return vector / length if length else None


def _pool(values: np.ndarray, parts: int) -> np.ndarray:
    """Return the sums (part, column) over equal parts of the rows; fewer rows than parts are repeated."""
    rows = np.linspace(0, len(values), parts + 1).astype(int)[:-1]
    sums: np.ndarray = np.add.reduceat(values, rows, axis=0)
    return sums
