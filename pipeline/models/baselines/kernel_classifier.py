"""Kernel classifiers of features: one versus the rest, with a radial basis function (RBF) kernel.

Two solvers: support vector machines (Cortes and Vapnik, 1995), and kernel ridge regression (regularised least squares;
Rifkin, Yeo and Poggio, 2003), which solves all classes at once. One versus the rest gives a logit per class, which
scikit-learn's one-versus-one vote does not. scikit-learn fits; prediction is plain NumPy.

Up to `MOST_EXACT_ROWS` rows both are exact in float64, in memory (ridge regression) or time (support vector machines) at
least quadratic in the rows. Of more rows both are kernel ridge regression as in `pipeline/models/baselines/rbf_kernel.py`:
exact in float32 up to `MOST_FLOAT32_ROWS`, then on a Nyström basis of `BASIS_ROWS` rows, for as many rows as features fit
in memory. For support vector machines that is their least-squares form (Suykens and Vandewalle, 1999), with the ridge of the
same penalty.

Conventions: features (row, feature) float, where a clip may have several rows; margins (row, class) are positive for the
class and negative for the rest, with training targets 1 and -1; logits are margins times the scale of
`pipeline/models/baselines/calibration.py`. The kernel is exp(-|x - y|^2 * kernel_width / number of features), of features
standardised by their mean and standard deviation.
"""

import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from pipeline.artifacts.clips import LabelKind
from pipeline.errors import ParamsError
from pipeline.execution.progress import progress
from pipeline.models.baselines.base import UNSEEN_LOGIT, Weights
from pipeline.models.baselines.calibration import fit_scale, halves
from pipeline.models.baselines.rbf_kernel import Vectors, blocks_of, float32_suffices, solve_in_float32, solve_on_basis
from pipeline.seeding import named_generator

log = logging.getLogger(__name__)

SMALLEST_STD = 1e-3  # in the features' units; a feature below it counts as constant and is not scaled
MOST_EXACT_ROWS = 10_000  # scikit-learn's kernel of 0.8 GB and a copy, or about 10 s a class of support vector machines
MOST_FLOAT32_ROWS = 30_000  # a kernel of 3.6 GB
BASIS_ROWS = 8192  # of the Nyström approximation: five matrices of 0.5 GB
MOST_ROWS = 1_000_000  # of features: 530 texture statistics take 2.1 GB

_CACHE = 500  # MB of kernel that scikit-learn keeps
_SURE = 3.0  # largest margin of a row, so that one row of a clip does not outweigh the others


class Solver(NamedTuple):
    """A way of fitting classifiers: exactly on few rows, and by kernel ridge regression on more."""

    # (rows (row, feature) float32, wanted (row, class) bool, gamma) -> dual (class, row), intercepts (class,)
    exact: Callable[[np.ndarray, np.ndarray, float], tuple[np.ndarray, np.ndarray]]
    ridge: float  # scikit-learn's alpha, of the least-squares form


def fit_one_vs_rest(
    features: np.ndarray,
    clips: np.ndarray,
    targets: np.ndarray,
    solver: Solver,
    *,
    kernel_width: float,
    label_kind: LabelKind,
    seed: int,
) -> Weights:
    """Fit classifiers on features; row r belongs to clip `clips[r]`, a row of `targets` (clip, class) of 0, 1 and NaN.

    A class is fitted on the rows whose label is known.

    Returns `mean` and `scale` (feature,), `support` (vector, feature) standardised, `dual` (class, vector), and `intercepts`
    (class,), all float32. A Nyström basis is drawn with the seed.
    """
    wanted, known = targets > 0.5, ~np.isnan(targets)
    num_rows = len(features)

    def fit(rows: np.ndarray) -> Weights:
        own = _Labels(wanted[clips[rows]], known[clips[rows]])
        if num_rows <= MOST_EXACT_ROWS:
            return _fit_exactly(features[rows], own, solver, kernel_width)
        basis = None
        if num_rows > MOST_FLOAT32_ROWS or not float32_suffices(num_rows, solver.ridge):
            drawn = named_generator(seed, "basis").choice(len(rows), min(BASIS_ROWS, len(rows)), replace=False)
            basis = np.sort(drawn)
        return _fit_ridge(features, rows, basis, own, solver.ridge, kernel_width)

    weights = fit(np.arange(num_rows))
    margins = np.full(targets.shape, -1.0)  # of a class without clips in the other half
    for own, others in halves(len(targets)):
        fitted = np.isin(clips, own)
        if fitted.any() and len(others):
            half, judged = fit(np.flatnonzero(fitted)), np.flatnonzero(~fitted)
            seen = wanted[own].any(axis=0)
            means = _mean_scores(half, features, judged, clips, len(targets), kernel_width)
            margins[np.ix_(others, seen)] = means[others][:, seen]
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
        with progress("support vector machines", wanted.shape[1], unit="classes") as advance:
            for number, own in enumerate(wanted.T):
                classifier = SVC(C=penalty, kernel="rbf", gamma=gamma, cache_size=_CACHE)
                classifier.fit(rows.astype(np.float64), own)
                dual[number, classifier.support_], intercepts[number] = (
                    classifier.dual_coef_[0],
                    classifier.intercept_[0],
                )
                advance(1)
        return dual, intercepts

    return Solver(solve, ridge=1 / (2 * penalty))


def least_squares(ridge: float) -> Solver:
    """Return the solver of kernel ridge regression; `ridge` is scikit-learn's alpha."""

    def solve(rows: np.ndarray, wanted: np.ndarray, gamma: float) -> tuple[np.ndarray, np.ndarray]:
        from sklearn.kernel_ridge import KernelRidge

        values = np.where(wanted, np.float32(1), np.float32(-1))
        means = values.mean(axis=0)
        classifier = KernelRidge(alpha=ridge, kernel="rbf", gamma=gamma).fit(rows.astype(np.float64), values - means)
        return classifier.dual_coef_.T, means

    return Solver(solve, ridge)


def require_room(num_clips: int, rows_per_clip: int, where: str) -> None:
    """Raise ParamsError, which says `where`, for more than `MOST_ROWS` rows, whose features outgrow the memory."""
    if num_clips * rows_per_clip > MOST_ROWS:
        per_clip = f", {rows_per_clip} of each: it, its augmented copies and mixtures" if rows_per_clip > 1 else ""
        fewer = "leave augmented copies and mixtures out, or " if rows_per_clip > 1 else ""
        raise ParamsError(
            f"{where}: expected at most {MOST_ROWS:,} rows of features, which are in memory at once, found "
            f"{num_clips * rows_per_clip:,} of {num_clips:,} training clips{per_clip}; {fewer}train a network instead"
        )


def score(weights: Weights, features: np.ndarray, *, kernel_width: float) -> np.ndarray:
    """Return logits (row, class) float32 of rows with these features."""
    scale = weights["scale"].astype(np.float64)
    support, dual = Vectors(weights["support"].astype(np.float64)), weights["dual"].T
    gamma = kernel_width / features.shape[1]
    logits = np.empty((len(features), dual.shape[1]), dtype=np.float32)
    for block in blocks_of(len(features)):
        rows = (features[block] - weights["mean"]) / scale
        logits[block] = support.kernel(rows, gamma) @ dual + weights["intercepts"]
    return logits


def _mean_scores(
    weights: Weights, features: np.ndarray, rows: np.ndarray, clips: np.ndarray, num_clips: int, kernel_width: float
) -> np.ndarray:
    """Return the mean logits of each clip's rows among `rows`, (clip, class); a clip without any has NaN."""
    sums = np.zeros((num_clips, len(weights["intercepts"])))
    with progress("calibration", len(rows), unit="rows") as advance:
        for block in blocks_of(len(rows)):
            own = rows[block]
            scores = np.clip(score(weights, features[own], kernel_width=kernel_width), -_SURE, _SURE)
            np.add.at(sums, clips[own], scores)
            advance(len(own))
    counts = np.bincount(clips[rows], minlength=num_clips)
    with np.errstate(invalid="ignore"):
        return np.asarray(sums / counts[:, None])


class _Labels(NamedTuple):
    """Labels of rows, (row, class) bool each."""

    wanted: np.ndarray
    known: np.ndarray

    def fitted(self) -> Iterator[tuple[np.ndarray, np.ndarray | slice]]:
        """Yield classes (class,) bool that some rows have and others lack, with the rows where these are known.

        All together where every label is known, otherwise one after the other.
        """
        some = ~(self.everyone | self.nobody)
        if self.known.all():
            if some.any():
                yield some, slice(None)
            return
        for number in np.flatnonzero(some):
            yield np.arange(len(some)) == number, np.flatnonzero(self.known[:, number])

    @property
    def everyone(self) -> np.ndarray:
        """Classes (class,) bool that every row has of which it is known."""
        return np.asarray((self.wanted | ~self.known).all(axis=0) & ~self.nobody)

    @property
    def nobody(self) -> np.ndarray:
        """Classes (class,) bool that no row has."""
        return np.asarray(~self.wanted.any(axis=0))


# (classes (class,) bool, rows) -> dual (class, support), intercepts (class,)
_Solve = Callable[[np.ndarray, np.ndarray | slice], tuple[np.ndarray, np.ndarray]]


def _fit_exactly(features: np.ndarray, labels: _Labels, solver: Solver, kernel_width: float) -> Weights:
    """Return the weights of classifiers whose logits are margins."""
    mean, std = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    scaling = _Scaling.of(mean, std)
    rows = scaling.apply(features)
    gamma = kernel_width / rows.shape[1]

    def solve(classes: np.ndarray, judged: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray]:
        dual = np.zeros((int(classes.sum()), len(rows)))
        dual[:, judged], intercepts = solver.exact(rows[judged], labels.wanted[judged][:, classes], gamma)
        return dual, intercepts

    return _weights(rows, labels, scaling, solve)


def _fit_ridge(
    features: np.ndarray,
    rows: np.ndarray,
    basis: np.ndarray | None,
    labels: _Labels,
    ridge: float,
    kernel_width: float,
) -> Weights:
    """Return the same of kernel ridge regression for some rows of the features; `basis` is some of these by place, or None.

    Rows are standardised in blocks, so that no copy of the features is made.
    """
    scaling, gamma = _Scaling.of(*_statistics(features, rows)), kernel_width / features.shape[1]
    support = scaling.apply(features[rows if basis is None else rows[basis]])

    def solve(classes: np.ndarray, judged: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray]:
        places, wanted = np.arange(len(rows))[judged], labels.wanted[judged][:, classes]
        means = 2 * wanted.mean(axis=0) - 1
        if basis is None:
            log.info("kernel ridge regression: solving for %d rows", len(places))
            dual = np.zeros((len(means), len(rows)))
            values = 2.0 * wanted - 1 - means
            dual[:, judged] = solve_in_float32(support[judged], values, gamma=gamma, ridge=ridge)
            return dual, means

        def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            with progress("kernel ridge regression", len(places), unit="rows") as advance:
                for block in blocks_of(len(places)):
                    own = scaling.apply(features[rows[places[block]]])
                    yield own.astype(np.float64), 2.0 * wanted[block] - 1 - means
                    advance(len(own))

        return solve_on_basis(blocks(), support.astype(np.float64), gamma=gamma, ridge=ridge), means

    return _weights(support, labels, scaling, solve)


class _Scaling(NamedTuple):
    """Mean and scale (feature,) float32 of standardised features."""

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, mean: np.ndarray, std: np.ndarray) -> "_Scaling":
        """Return the scaling to a mean of 0 and a standard deviation of 1."""
        scale = np.where(std > SMALLEST_STD, std, 1.0)
        # Rounded to the stored precision first, so that the stored vectors are exactly those of the fit.
        return cls(mean.astype(np.float32), scale.astype(np.float32))

    def apply(self, features: np.ndarray) -> np.ndarray:
        """Return standardised rows (row, feature) float32."""
        rows: np.ndarray = ((features - self.mean) / self.scale).astype(np.float32)
        return rows


def _statistics(features: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation (feature,) float64 of some rows, block by block."""
    blocks = [rows[block] for block in blocks_of(len(rows))]
    mean = sum(features[own].sum(axis=0, dtype=np.float64) for own in blocks) / len(rows)
    squares = sum(((features[own] - mean) ** 2).sum(axis=0) for own in blocks) / len(rows)
    return mean, np.sqrt(squares)


def _weights(support: np.ndarray, labels: _Labels, scaling: _Scaling, solve: _Solve) -> Weights:
    """Return the weights of kernels at `support`, which `solve` fits."""
    dual = np.zeros((labels.wanted.shape[1], len(support)))
    intercepts = np.where(labels.everyone, -UNSEEN_LOGIT, UNSEEN_LOGIT)
    for classes, judged in labels.fitted():
        dual[classes], intercepts[classes] = solve(classes, judged)
    used = np.flatnonzero(dual.any(axis=0))
    weights = {"support": support[used], "dual": dual[:, used], "intercepts": intercepts, **scaling._asdict()}
    return {name: values.astype(np.float32) for name, values in weights.items()}
