"""From frames to words: the nearest code of every codebook.

Conventions: frames (frame, mel) float32 in the front end's units; normalised frames z (frame, mel); tokens
(codebook, frame) uint16. What is computed depends on the vocabulary's arrays alone, never on its kind: a codebook
encodes its features of z, and where codebooks overlap, each encodes what those before it left over (residual vector
quantisation; Juang and Gray, 1982).
"""

from collections.abc import Sequence

import numpy as np

from pipeline.artifacts.vocabulary import Vocabulary
from pipeline.vocabulary.device import choose_device, nearest_on

# Frames are scored in blocks whose scores (frame, code) stay in the processor's cache between the matrix product and
# the argmax. Measured at 128 features against one bare product over all frames, one thread: 500 codes 1.07 of its rate,
# 4096 codes 0.99; blocks of 32 M scores halve it. FAISS's flat search reached 0.98 and 0.97 there.
_SCORES_PER_BLOCK = 1 << 21
_SHORTEST = 1e-6  # a frame that is this close to flat has no shape; it stays at the origin


def assign(vocabulary: Vocabulary, frames: np.ndarray) -> np.ndarray:
    """Return the words of frames (frame, mel) as tokens (codebook, frame) uint16."""
    return nearest_codes(normalise(frames, vocabulary), vocabulary.codebooks, vocabulary.facts["bands"])


def normalise(frames: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Normalise frames (frame, mel) as those that the vocabulary was fitted on; same shape, float32."""
    return normalise_frames(frames, vocabulary.mean, vocabulary.scale, vocabulary.facts["normalisation"])


def normalise_frames(frames: np.ndarray, mean: np.ndarray, scale: np.ndarray, normalisation: str) -> np.ndarray:
    """Return z = (x - mean) / scale; for "l2", z less its own mean over the bands, at unit length.

    A gain adds one number to all bands of a log-mel frame, so "l2" ignores level exactly when `scale` is the same in
    all bands, and keeps the shape of the spectrum alone. `mean` and `scale` are (mel,).
    """
    z: np.ndarray = np.subtract(frames, mean, dtype=np.float32)
    z /= scale
    if normalisation == "l2":
        z -= z.mean(axis=1, keepdims=True)
        length = np.linalg.norm(z, axis=1, keepdims=True)
        z /= np.where(length > _SHORTEST, length, np.float32(np.inf))
    return z


def nearest_codes(z: np.ndarray, codebooks: np.ndarray, bands: Sequence[Sequence[int]]) -> np.ndarray:
    """Return the nearest code in each codebook as (codebook, frame) uint16; the lowest id among equals.

    `z` (frame, mel) float32; `codebooks` (codebook, code, feature); codebook b covers the features [from, to) = `bands[b]`.
    """
    tokens = np.empty((len(codebooks), len(z)), dtype=np.uint16)
    rest = z
    for number, (codebook, (start, stop)) in enumerate(zip(codebooks, bands, strict=True)):
        codes = codebook[:, : stop - start]
        tokens[number] = _nearest(rest[:, start:stop], codes)
        if any(later < stop and start < end for later, end in bands[number + 1 :]):
            rest = rest.copy() if rest is z else rest
            rest[:, start:stop] -= codes[tokens[number]]
    return tokens


def _nearest(features: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Return argmin over codes c of |x - c|^2 = argmax of x . c - |c|^2 / 2, for each x: (frame,) int64.

    The second term rides in the matrix product as one more feature: a pass over the scores costs more than it.
    """
    num_codes, width = codes.shape
    device = choose_device(len(features) * num_codes)
    if device is not None:
        return nearest_on(device, features, codes)
    weights = np.empty((width + 1, num_codes), dtype=np.float32)
    weights[:-1] = codes.T
    weights[-1] = -0.5 * np.einsum("cf,cf->c", codes, codes, dtype=np.float64)
    block = max(64, _SCORES_PER_BLOCK // num_codes)
    inputs = np.ones((block, width + 1), dtype=np.float32)
    scores = np.empty((block, num_codes), dtype=np.float32)
    nearest = np.empty(len(features), dtype=np.int64)
    for start in range(0, len(features), block):
        count = min(block, len(features) - start)
        inputs[:count, :-1] = features[start : start + count]
        np.matmul(inputs[:count], weights, out=scores[:count])
        scores[:count].argmax(axis=1, out=nearest[start : start + count])
    return nearest
