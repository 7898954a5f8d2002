"""Linear discriminant analysis (LDA) of features: directions in which classes differ most, for the variance within them.

Conventions: features (token, feature) float32; targets (clip, class) float32: 1 for a class that a clip has, 0 for one that
it has not, a probability where labels are soft, NaN where it is unknown. A token counts once for each class of its clip,
weighted by the target, and not at all without any. Discriminants have variance 1 within classes, and come by descending
ratio of the variance between classes to it, as scikit-learn's do (Hastie, Tibshirani and Friedman, 2009, section 4.3).

scikit-learn holds several float64 copies of all features, and takes one class a row; here features are read in blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipeline.errors import CorpusError, ParamsError
from pipeline.vocabulary.settings import LdaParams

_SMALLEST_RATIO = 1e-9  # of variances between and within classes; below it is rounding noise
_ROWS_PER_BLOCK = 1 << 14  # bounds the float64 copies

_WHERE = "vocabularies.*.features.lda"


@dataclass(frozen=True)
class LabelledTokens:
    """Clips of sampled tokens, and the classes of these clips."""

    clips: np.ndarray  # (token,) int64, rows of `targets`
    targets: np.ndarray  # (clip, class) float32

    @property
    def weights(self) -> np.ndarray:
        """Return how much a token of each clip counts for each class: (clip, class) float64."""
        return np.nan_to_num(self.targets.astype(np.float64))


class Discriminants(NamedTuple):
    """A projection, and the linear map that estimates features from it with the least squared error."""

    centre: np.ndarray  # (feature,) float32
    components: np.ndarray  # (component, feature) float32
    inverse: np.ndarray  # (component, feature) float32


class _Scatter(NamedTuple):
    """Mean and covariances (feature, feature) of features, float64, over tokens by their weights."""

    centre: np.ndarray  # (feature,)
    within: np.ndarray  # of each class around its mean
    total: np.ndarray


def fit_group_lda(params: LdaParams, groups: Sequence[np.ndarray], labelled: LabelledTokens) -> list[Discriminants]:
    """Fit on the features (token, feature) of each group by itself, and return as many discriminants of each.

    That is the number of the group that has the fewest, since codebooks of groups divide the features equally. Raises as
    `fit_lda`.
    """
    found = [fit_lda(params, features, labelled) for features in groups]
    fewest = min(len(group.components) for group in found)
    same = params.model_copy(update={"dimensions": fewest})
    return [
        group if len(group.components) == fewest else fit_lda(same, features, labelled)
        for group, features in zip(found, groups, strict=True)
    ]


def fit_lda(params: LdaParams, features: np.ndarray, labelled: LabelledTokens) -> Discriminants:
    """Fit on the sample's features (token, feature).

    Raises CorpusError without two classes among the tokens, or where no feature varies within classes, and ParamsError when
    there are fewer discriminants than `params` ask for, or features do not vary in all directions within classes.
    """
    from scipy.linalg import eigh

    centre, within, total = _scatter(features, labelled)
    if np.trace(within) <= _SMALLEST_RATIO * np.trace(total):
        raise CorpusError(
            f"{_WHERE}: expected features that vary within classes, found {features.shape[1]} that are the same in all "
            "frames of a class, such as those of a group of mel bands without sound; take fewer groups (`bands`), mel bands "
            "that have sound (spectrogram.front_end.f_min and f_max), or set lda to null"
        )
    try:
        ratios, axes = eigh(total - within, _shrunk(within, params.shrinkage))  # ascending; axes are columns
    except np.linalg.LinAlgError:
        raise ParamsError(
            f"{_WHERE}.shrinkage: expected above 0, since the {features.shape[1]} features of the sample do not vary in all "
            f"directions within classes, found {params.shrinkage:g}; 0.01 is enough"
        ) from None
    usable = int((ratios > _SMALLEST_RATIO * max(ratios[-1], 1.0)).sum())
    dimensions = usable if params.dimensions is None else params.dimensions
    if dimensions > usable:
        raise ParamsError(
            f"{_WHERE}.dimensions: expected at most {usable}, in so many dimensions the means of the classes of the sample "
            f"differ (one less than there are classes), found {dimensions}; null takes all"
        )
    components = axes[:, ::-1][:, :dimensions].T
    # An axis may point either way: let its largest entry be positive.
    components *= np.sign(components[np.arange(dimensions), np.abs(components).argmax(axis=1)])[:, None]
    inverse = np.linalg.solve(components @ total @ components.T, components @ total)
    return Discriminants(*(values.astype(np.float32) for values in (centre, components, inverse)))


def _shrunk(covariance: np.ndarray, shrinkage: float) -> np.ndarray:
    """Return the covariance drawn by a fraction to one of equal variances in all directions (Friedman, 1989)."""
    size = len(covariance)
    shrunk: np.ndarray = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / size * np.eye(size)
    return shrunk


def _scatter(features: np.ndarray, labelled: LabelledTokens) -> _Scatter:
    """Return the covariances of the sample's features. Raises CorpusError with fewer than two classes."""
    per_clip = labelled.weights  # (clip, class)
    weights = per_clip.sum(axis=1)[labelled.clips]  # (token,)
    tokens_of_clip = np.bincount(labelled.clips, minlength=len(per_clip))
    sizes = tokens_of_clip @ per_clip  # (class,)
    if (sizes > 0).sum() < 2:
        raise CorpusError(
            f"{_WHERE}: expected training clips of two classes at least in the vocabulary's sample, found "
            f"{int((sizes > 0).sum())}; set lda to null, or look at the labels with `sonolex why CLIP`"
        )
    origin = features.mean(
        axis=0, dtype=np.float64
    )  # near the centre, so that no difference of large numbers loses digits
    moments = np.zeros((features.shape[1], features.shape[1]))
    sums = np.zeros((len(sizes), features.shape[1]))
    for start in range(0, len(features), _ROWS_PER_BLOCK):
        block = slice(start, start + _ROWS_PER_BLOCK)
        rows = features[block] - origin
        moments += rows.T @ (rows * weights[block, None])
        sums += per_clip[labelled.clips[block]].T @ rows
    moments, means = moments / sizes.sum(), sums[sizes > 0] / sizes[sizes > 0, None]
    shares = sizes[sizes > 0] / sizes.sum()
    centre = shares @ means
    within = moments - means.T @ (means * shares[:, None])
    return _Scatter(origin + centre, within, moments - np.outer(centre, centre))
