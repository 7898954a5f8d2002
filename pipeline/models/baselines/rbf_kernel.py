"""Radial basis function (RBF) kernel, and kernel ridge regression with it on many rows.

The exact solution is a sum of kernels at all rows, in memory quadratic and time cubic in them; in float32, and factorised in
place, it takes a quarter of scikit-learn's memory. The Nyström approximation is a sum of kernels at a *basis* of rows, drawn
at random, that minimises the same objective (Williams and Seeger, 2001; Rudi, Camoriano and Rosasco, 2015): memory is
quadratic in the basis alone, and time linear in the rows.

Conventions: rows (row, feature), vectors (vector, feature); the kernel is exp(-gamma * |x - y|^2), in float64 unless stated;
values (row, class); `ridge` is scikit-learn's alpha; weights of kernels are (class, vector).
"""

from collections.abc import Iterable, Iterator

import numpy as np

ROWS_PER_BLOCK = 4096  # bounds the kernels between rows and vectors
JITTER = 1e-8  # added to the kernel's diagonal, so that rows that are alike can both be in a basis


class Vectors:
    """Vectors that kernels are computed with."""

    def __init__(self, vectors: np.ndarray) -> None:
        self._vectors, self._squares = vectors, (vectors**2).sum(axis=1)

    def kernel(self, rows: np.ndarray, gamma: float) -> np.ndarray:
        """Return the kernel of rows and the vectors, (row, vector), in their precision."""
        squared = (rows**2).sum(axis=1)[:, None] - 2 * rows @ self._vectors.T + self._squares
        kernel: np.ndarray = np.exp(np.maximum(squared, 0) * -gamma)
        return kernel


def blocks_of(count: int) -> Iterator[slice]:
    """Yield slices of at most `ROWS_PER_BLOCK` rows, of `count` in all."""
    for first in range(0, count, ROWS_PER_BLOCK):
        yield slice(first, min(first + ROWS_PER_BLOCK, count))


def float32_suffices(num_rows: int, ridge: float) -> bool:
    """Return whether rounding to float32 leaves the kernel of so many rows positive definite, with this ridge added."""
    return ridge > num_rows * float(np.finfo(np.float32).eps)


def solve_in_float32(rows: np.ndarray, values: np.ndarray, *, gamma: float, ridge: float) -> np.ndarray:
    """Return the exact weights of kernels at all rows, float32, in 4 bytes a pair of rows."""
    from scipy.linalg.lapack import spotrf, spotrs

    vectors = Vectors(rows)
    kernel = np.empty((len(rows), len(rows)), np.float32)
    for block in blocks_of(len(rows)):
        kernel[block] = vectors.kernel(rows[block], gamma)
    kernel[np.diag_indices_from(kernel)] += np.float32(ridge)
    # Transposed, which changes nothing of a symmetric matrix, it is in LAPACK's order, and no copy is made.
    factor, info = spotrf(kernel.T, lower=1, clean=0, overwrite_a=1)
    if info:
        raise np.linalg.LinAlgError(f"row {info} of the kernel is not positive definite")
    weights: np.ndarray = spotrs(factor, values.astype(np.float32), lower=1)[0].T
    return weights


def solve_on_basis(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]], basis: np.ndarray, *, gamma: float, ridge: float
) -> np.ndarray:
    """Return the weights of kernels at a basis, of rows with their values in blocks. A basis of all rows is exact."""
    from scipy.linalg import cholesky, solve, solve_triangular

    vectors = Vectors(basis)
    products, moments = np.zeros((len(basis), len(basis))), np.zeros(1)  # (vector, vector), (vector, class)
    for rows, values in blocks:
        kernel = vectors.kernel(rows, gamma)
        products += kernel.T @ kernel
        moments = moments + kernel.T @ values
    # In coordinates in which the ridge is the identity: the normal equations of the kernels themselves are ill-conditioned.
    factor = vectors.kernel(basis, gamma)
    factor[np.diag_indices_from(factor)] += JITTER
    factor = cholesky(factor, lower=True, overwrite_a=True, check_finite=False)

    def whitened(matrix: np.ndarray) -> np.ndarray:
        solved: np.ndarray = solve_triangular(factor, matrix, lower=True, check_finite=False)
        return solved

    products = whitened(whitened(products).T)
    products[np.diag_indices_from(products)] += ridge
    weights = solve(products, whitened(moments), assume_a="pos", overwrite_a=True, check_finite=False)
    dual: np.ndarray = solve_triangular(factor, weights, lower=True, trans="T", check_finite=False).T
    return dual
