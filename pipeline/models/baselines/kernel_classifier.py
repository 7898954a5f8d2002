"""Kernel classifiers of features: one versus the rest, with a radial basis function (RBF) kernel.

Two solvers: support vector machines (Cortes and Vapnik, 1995), and kernel ridge regression (regularised least squares;
Rifkin, Yeo and Poggio, 2003), which solves all classes at once in memory quadratic in the rows. One versus the rest gives a
logit per class, which scikit-learn's one-versus-one vote does not. scikit-learn fits; prediction is plain NumPy.

Conventions: features (row, feature), where a clip may have several rows; margins (row, class) are positive for the class and
negative for the rest, with training targets 1 and -1; logits are margins times the scale of
`pipeline/models/baselines/calibration.py`. The kernel is exp(-|x - y|^2 * kernel_width / number of features), of features
standardised by their mean and standard deviation.
"""

from collections.abc import Callable

import numpy as np

from pipeline.artifacts.clips import LabelKind
from pipeline.errors import ParamsError
from pipeline.models.baselines.base import UNSEEN_LOGIT, Weights
from pipeline.models.baselines.calibration import fit_scale, halves

SMALLEST_STD = 1e-3  # in the features' units; a feature below it counts as constant and is not scaled
MOST_ROWS = 25_000  # of least squares: a kernel of 5 GB, and a copy

_CACHE = 500  # MB of kernel that scikit-learn keeps
_ROWS_PER_BLOCK = 4096  # bounds the kernel of predictions
_SURE = 3.0  # largest margin of a row, so that one row of a clip does not outweigh the others

# (rows (row, feature) float32, wanted (row, class) bool, gamma) -> dual (class, row), intercepts (class,)
Solver = Callable[[np.ndarray, np.ndarray, float], tuple[np.ndarray, np.ndarray]]


def fit_one_vs_rest(
    features: np.ndarray,
    clips: np.ndarray,
    targets: np.ndarray,
    solver: Solver,
    *,
    kernel_width: float,
    label_kind: LabelKind,
) -> Weights:
    """Fit classifiers on features; row r belongs to clip `clips[r]`, a row of `targets` (clip, class) of 0, 1 and NaN.

    A class is fitted on the rows whose label is known.

    Returns `mean` and `scale` (feature,), `support` (vector, feature) standardised, `dual` (class, vector), and `intercepts`
    (class,), all float32.
    """
    wanted, known = targets > 0.5, ~np.isnan(targets)
    weights = _fit(features, wanted[clips], known[clips], solver, kernel_width)
    margins = np.full(targets.shape, -1.0)  # of a class without clips in the other half
    for own, others in halves(len(targets)):
        rows = np.isin(clips, own)
        if rows.any() and len(others):
            judged, fitted = ~rows, clips[rows]
            half = _fit(features[rows], wanted[fitted], known[fitted], solver, kernel_width)
            scores = np.clip(score(half, features[judged], kernel_width=kernel_width), -_SURE, _SURE)
            sums = np.zeros_like(margins)
            np.add.at(sums, clips[judged], scores)
            seen = wanted[own].any(axis=0)
            counts = np.bincount(clips[judged], minlength=len(targets))
            margins[np.ix_(others, seen)] = (sums[others] / counts[others, None])[:, seen]
    judgeable = None if known.all() else known
    scale = np.float32(fit_scale(lambda factor: factor * margins, wanted, label_kind, judgeable))
    intercepts = weights["intercepts"]
    told_apart = np.abs(intercepts) != -UNSEEN_LOGIT
    return weights | {
        "dual": weights["dual"] * scale,
        "intercepts": np.where(told_apart, intercepts * scale, intercepts),
    }


def support_vectors(penalty: float) -> Solver:
    """Return the solver of support vector machines; `penalty` is scikit-learn's C."""

    def solve(rows: np.ndarray, wanted: np.ndarray, gamma: float) -> tuple[np.ndarray, np.ndarray]:
        from sklearn.svm import SVC

        dual, intercepts = np.zeros((wanted.shape[1], len(rows))), np.zeros(wanted.shape[1])
        for number, own in enumerate(wanted.T):
            classifier = SVC(C=penalty, kernel="rbf", gamma=gamma, cache_size=_CACHE).fit(rows.astype(np.float64), own)
            dual[number, classifier.support_], intercepts[number] = classifier.dual_coef_[0], classifier.intercept_[0]
        return dual, intercepts

    return solve


def least_squares(ridge: float) -> Solver:
    """Return the solver of kernel ridge regression, in the memory of `require_room`; `ridge` is scikit-learn's alpha."""

    def solve(rows: np.ndarray, wanted: np.ndarray, gamma: float) -> tuple[np.ndarray, np.ndarray]:
        from sklearn.kernel_ridge import KernelRidge

        values = np.where(wanted, np.float32(1), np.float32(-1))
        means = values.mean(axis=0)
        classifier = KernelRidge(alpha=ridge, kernel="rbf", gamma=gamma).fit(rows.astype(np.float64), values - means)
        return classifier.dual_coef_.T, means

    return solve


def require_room(num_rows: int, where: str) -> None:
    """Raise ParamsError, which says `where`, when least squares on `num_rows` rows would take more than 10 GB."""
    if num_rows > MOST_ROWS:
        raise ParamsError(
            f"{where}: expected at most {MOST_ROWS:,} training clips, copies and mixtures in all, since the kernel takes "
            f"memory with their square, found {num_rows:,}; leave augmented copies and mixtures out, or "
            "train another kind of model"
        )


def score(weights: Weights, features: np.ndarray, *, kernel_width: float) -> np.ndarray:
    """Return logits (row, class) float32 of rows with these features."""
    rows = (features - weights["mean"]) / weights["scale"].astype(np.float64)
    support = weights["support"].astype(np.float64)
    lengths, dual = (support**2).sum(axis=1), weights["dual"].T
    logits = np.empty((len(rows), dual.shape[1]), dtype=np.float32)
    for first in range(0, len(rows), _ROWS_PER_BLOCK):
        block = rows[first : first + _ROWS_PER_BLOCK]
        squared = (block**2).sum(axis=1)[:, None] - 2 * block @ support.T + lengths
        kernel = np.exp(np.maximum(squared, 0) * (-kernel_width / rows.shape[1]))
        logits[first : first + _ROWS_PER_BLOCK] = kernel @ dual + weights["intercepts"]
    return logits


def _fit(features: np.ndarray, wanted: np.ndarray, known: np.ndarray, solver: Solver, kernel_width: float) -> Weights:
    """Return the weights of classifiers whose logits are margins; `wanted` and `known` (row, class) bool."""
    mean, std = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    scale = np.where(std > SMALLEST_STD, std, 1.0)
    # Rounded to the stored precision first, so that the stored vectors are exactly those of the fit.
    mean, scale = mean.astype(np.float32), scale.astype(np.float32)
    rows = ((features - mean) / scale).astype(np.float32)
    nobody = ~wanted.any(axis=0)
    everyone = (wanted | ~known).all(axis=0) & ~nobody
    fitted = ~(everyone | nobody)
    dual = np.zeros((wanted.shape[1], len(rows)))
    intercepts = np.where(everyone, -UNSEEN_LOGIT, UNSEEN_LOGIT)
    if fitted.any():
        gamma = kernel_width / rows.shape[1]
        dual[fitted], intercepts[fitted] = _solve(rows, wanted[:, fitted], known[:, fitted], solver, gamma)
    used = np.flatnonzero(dual.any(axis=0))
    weights = {"support": rows[used], "dual": dual[:, used], "intercepts": intercepts, "mean": mean, "scale": scale}
    return {name: values.astype(np.float32) for name, values in weights.items()}


def _solve(
    rows: np.ndarray, wanted: np.ndarray, known: np.ndarray, solver: Solver, gamma: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return dual (class, row) and intercepts (class,); where labels are unknown, of one class after the other."""
    if known.all():
        return solver(rows, wanted, gamma)
    dual, intercepts = np.zeros((wanted.shape[1], len(rows))), np.zeros(wanted.shape[1])
    for number, (own, judged) in enumerate(zip(wanted.T, known.T, strict=True)):
        coefficients, means = solver(rows[judged], own[judged, None], gamma)
        dual[number, judged], intercepts[number] = coefficients[0], means[0]
    return dual, intercepts
