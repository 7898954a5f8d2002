"""Codes of tokens that have no centroids: what they stand for, measured on the sample.

In the first codebook a code is the mean of the features that have its token, in each further one the mean of what the
codebooks before left over. A token that the sample does not have stands for the mean over all of it.

Conventions: features (token, feature) float32; tokens (codebook, token) uint16; codes (codebook, code, feature) float32.
"""

import numpy as np

_ROWS_PER_BLOCK = 1 << 14  # bounds the float64 copies


def measure_codes(features: np.ndarray, tokens: np.ndarray, size: int) -> tuple[np.ndarray, float]:
    """Return the codes of codebooks of `size` tokens, and the mean squared distance of the features to their sums."""
    rest, codes = features.copy(), []
    for row in tokens:
        codes.append(_token_means(rest, row, size))
        rest -= codes[-1][row]
    return np.stack(codes), float(np.einsum("tf,tf->", rest, rest, dtype=np.float64) / len(rest))


def _token_means(values: np.ndarray, tokens: np.ndarray, size: int) -> np.ndarray:
    """Return the mean of the rows of `values` (token, feature) that have each token: (code, feature) float32."""
    from scipy.sparse import csr_array

    sums = np.zeros((size, values.shape[1]))
    for start in range(0, len(values), _ROWS_PER_BLOCK):
        rows, chosen = values[start : start + _ROWS_PER_BLOCK], tokens[start : start + _ROWS_PER_BLOCK]
        ones = np.ones(len(rows))
        sums += csr_array((ones, chosen, np.arange(len(rows) + 1)), shape=(len(rows), size)).T @ rows.astype(np.float64)
    counts = np.bincount(tokens, minlength=size)[:, None]
    means: np.ndarray = np.where(counts > 0, sums / np.maximum(counts, 1), sums.sum(axis=0) / len(values))
    return means.astype(np.float32)
