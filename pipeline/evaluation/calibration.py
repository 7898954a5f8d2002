"""Calibration: how well probabilities say how often a model is right, as reliability diagrams show it.

Conventions: scores and targets (clip, class) as in `pipeline/evaluation/metric_functions.py`. With one label a clip, what is
compared is the probability of the likeliest class and whether it is right (Guo et al., ICML 2017, "On calibration of modern
neural networks"); with several, the probability of every known label and whether the clip has it. The expected calibration
error is the mean over bins of |mean probability - observed share|, weighted by the bins' sizes.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts.clips import LabelKind
from pipeline.evaluation.metric_functions import Bools, Floats

NUM_BINS = 15  # of equal width, as in Guo et al.


class Reliability(NamedTuple):
    """Bins of probabilities from 0 to 1, each (bin,). Means of an empty bin are NaN."""

    counts: NDArray[np.int64]
    probabilities: Floats  # mean of a bin
    shares: Floats  # of what turned out right

    @property
    def error(self) -> float:
        """The expected calibration error; NaN without any probability."""
        total = self.counts.sum()
        gaps = np.nan_to_num(np.abs(self.probabilities - self.shares))
        return float((self.counts * gaps).sum() / total) if total else math.nan


def measure_reliability(scores: Floats, targets: Bools, label_kind: LabelKind) -> Reliability:
    """Sort probabilities into bins, and compare each bin's mean with the share that is right."""
    if label_kind == "one":
        rows, best = np.arange(len(scores)), scores.argmax(axis=1)
        probabilities, right = scores[rows, best], targets[rows, best]
    else:
        known = ~np.isnan(scores)
        probabilities, right = scores[known], targets[known]
    bins = np.clip((probabilities * NUM_BINS).astype(np.int64), 0, NUM_BINS - 1)
    counts = np.bincount(bins, minlength=NUM_BINS).astype(np.int64)
    sums = [np.bincount(bins, weights=values, minlength=NUM_BINS) for values in (probabilities, right.astype(float))]
    means = [np.where(counts > 0, total / np.maximum(counts, 1), np.nan) for total in sums]
    return Reliability(counts, *means)
