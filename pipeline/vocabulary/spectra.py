"""Mean spectra of tokens that stand for no frames: over the frames in the middle of their occurrences in clips.

They are what pages show such tokens by. No model reads them.
"""

from collections.abc import Iterable

import numpy as np


def middle_frames(num_tokens: int, num_frames: int, frames_per_token: float) -> np.ndarray:
    """Return the frame in the middle of each token of a clip, (token,)."""
    middles: np.ndarray = np.floor((np.arange(num_tokens) + 0.5) * frames_per_token).astype(np.int64)
    return middles.clip(max=num_frames - 1)


def mean_spectra(
    clips: Iterable[tuple[np.ndarray, np.ndarray]], shape: tuple[int, int], frames_per_token: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return how often each token occurs, (codebook, code) int64, and its mean frame, (codebook, code, mel) float32.

    `clips` are tokens (codebook, token) and frames (frame, mel) of each, `shape` the numbers of codebooks and of codes.
    Tokens that do not occur have the mean over all.
    """
    counts, sums = np.zeros(shape, np.int64), np.zeros((*shape, 0))
    for tokens, frames in clips:
        if not sums.size:
            sums = np.zeros((*shape, frames.shape[1]))
        middle = frames[middle_frames(tokens.shape[1], len(frames), frames_per_token)]
        for book, row in enumerate(tokens):
            np.add.at(sums[book], row, middle)
            counts[book] += np.bincount(row, minlength=shape[1])
    mean = sums.sum(axis=1, keepdims=True) / max(1, int(counts[0].sum()))
    spectra = np.where(counts[:, :, None] > 0, sums / np.maximum(counts, 1)[:, :, None], mean)
    return counts, spectra.astype(np.float32)
