"""95 % intervals of a metric over the test clips of one fold: how far it would move with other clips of the same kind.

Accuracy is a share of clips and has Wilson's score interval (Wilson, 1927; Brown, Cai and DasGupta, 2001, recommend it for
small samples). Mean average precision is no share: its interval goes from the 2.5th to the 97.5th percentile over bootstrap
resamples of the clips (Efron and Tibshirani, 1993), drawn with a fixed seed, so that all models of a fold are measured on
the same ones. A class without positives in a resample is left out of its mean, as in mAP itself.

Neither tells what other seeds of training would do. mAP falls slightly with the number of clips; the interval is that of as
many clips (LOG.md, 2026-11-25, has its coverage). Conventions: scores and targets (clip, class) as in
`pipeline/evaluation/metric_functions.py`.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

from pipeline.evaluation.metric_definition import Interval
from pipeline.evaluation.metric_functions import Bools, Floats, accuracy, validate

RESAMPLES = 1000

Counts = NDArray[np.int16 | np.int32]

_Z = 1.959963984540054  # of the normal distribution, two-sided 95 %
_BLOCK = 100  # resamples at once: 4 MB of weights for the 20,000 clips of AudioSet's evaluation set
_SEED = 0


def wilson_interval(share: float, count: int) -> Interval:
    """Return the interval of a share of `count` clips."""
    centre = share + _Z**2 / (2 * count)
    half = _Z * (share * (1 - share) / count + _Z**2 / (4 * count**2)) ** 0.5
    scale = 1 + _Z**2 / count
    return Interval(max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale))


def accuracy_interval(decisions: Bools, targets: Bools) -> Interval:
    """Return Wilson's interval of the accuracy of decisions, both (clip, class)."""
    return wilson_interval(accuracy(decisions, targets), len(decisions))


def map_interval(scores: ArrayLike, targets: ArrayLike) -> Interval:
    """Return the bootstrap interval of the mean average precision; NaN where no class has a positive."""
    values, positives = validate(scores, targets)
    generator = np.random.default_rng(_SEED)
    ranked = [_RankedClass(values[:, number], positives[:, number]) for number in np.flatnonzero(positives.any(axis=0))]
    if not ranked:
        return Interval(np.nan, np.nan)
    means = []
    for start in range(0, RESAMPLES, _BLOCK):
        weights = _draw(generator, len(values), min(_BLOCK, RESAMPLES - start))
        means.append(np.nanmean([own.average_precision(weights) for own in ranked], axis=0))
    low, high = np.nanpercentile(np.concatenate(means), [2.5, 97.5])
    return Interval(float(low), float(high))


def _draw(generator: np.random.Generator, num_clips: int, count: int) -> Counts:
    """Draw resamples: how often each clip is in each of them, (clip, resample)."""
    drawn = generator.integers(0, num_clips, (count, num_clips)) + num_clips * np.arange(count)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=count * num_clips).reshape(count, num_clips)
    # The narrowest integers that hold the largest sum, the number of clips: half the memory to read.
    narrow = num_clips <= np.iinfo(np.int16).max
    weights: Counts = np.ascontiguousarray(counts.T, dtype=np.int16 if narrow else np.int32)
    return weights


class _RankedClass:
    """The clips of one class by descending score, sorted once for all resamples."""

    def __init__(self, scores: Floats, positives: Bools) -> None:
        order = np.argsort(-scores, kind="stable")[: len(scores) - np.isnan(scores).sum()]  # NaN (unknown) comes last
        ordered, self._hits = scores[order], np.flatnonzero(positives[order])
        # Equal scores form one step: what counts is the number of clips, and of hits, up to the last of them.
        ends = np.searchsorted(-ordered, -ordered[self._hits], side="right") - 1
        self._last_hit = np.searchsorted(self._hits, ends, side="right") - 1
        steps, self._step = np.unique(ends, return_inverse=True)
        self._hit_clips, members = order[self._hits], order[: steps[-1] + 1]
        ones, shape = np.ones(len(members), np.int16), (len(steps), len(scores))
        self._members = csr_array((ones, members, np.concatenate([[0], steps + 1])), shape=shape)  # (step, clip)

    def average_precision(self, weights: Counts) -> Floats:
        """Return the average precision in each resample (resample,), NaN where no positive was drawn."""
        counts = np.ascontiguousarray((self._members @ weights).T)  # (resample, step)
        above = np.cumsum(counts, axis=1)[:, self._step]  # (resample, hit)
        drawn = weights[self._hit_clips].T
        found, total = np.cumsum(drawn, axis=1)[:, self._last_hit], drawn.sum(axis=1)
        precision = (np.multiply(drawn, found) / np.maximum(above, 1)).sum(axis=1)
        result: Floats = np.where(total > 0, precision / np.maximum(total, 1), np.nan)
        return result
