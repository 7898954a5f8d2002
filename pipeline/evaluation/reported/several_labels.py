"""Metrics of clips that may have several labels: by clip, not by class.

Of a clip's labels those that are unknown are left out, and a clip without any known label.

Sources
-------
Hamming score, exact match, and F1 by clip: Tsoumakas and Katakis (2007), "Multi-label classification: an overview". Label
ranking average precision and coverage: Schapire and Singer (2000), "BoosTexter"; here coverage counts labels from 1, as
scikit-learn's `coverage_error`. Clips without a label have no ranking, and are left out of both.
"""

import math
from functools import partial

import numpy as np

from pipeline.evaluation.intervals import wilson_interval
from pipeline.evaluation.metric_definition import Interval, Metric
from pipeline.evaluation.metric_functions import Bools, Floats, average_precision, mean_of_defined


def exact_match(decisions: Floats, targets: Bools) -> float:
    """Return the share of clips whose known labels are all decided rightly; known decisions and targets (clip, class)."""
    return mean_of_defined(_all_right(decisions, targets))


def exact_match_interval(decisions: Floats, targets: Bools) -> Interval:
    """Return Wilson's interval of the exact match."""
    right = _all_right(decisions, targets)
    count = int(np.isfinite(right).sum())
    return wilson_interval(mean_of_defined(right), count) if count else Interval(math.nan, math.nan)


def hamming_score(decisions: Floats, targets: Bools) -> float:
    """Return the share of known labels that are decided rightly, for and against; 1 minus the Hamming loss."""
    return mean_of_defined(np.where(np.isnan(decisions), np.nan, decisions == targets))


def all_zeros_hamming_score(decisions: Floats, targets: Bools) -> float:
    """Return the Hamming score of deciding for nothing, which a model has to exceed."""
    return hamming_score(np.where(np.isnan(decisions), np.nan, 0.0), targets)


def sample_f1(decisions: Floats, targets: Bools) -> float:
    """Return the mean over clips of F1 over a clip's labels: 1 where it has none and none is decided for."""
    decided = decisions == 1
    right, sizes = (decided & targets).sum(axis=1), decided.sum(axis=1) + targets.sum(axis=1)
    scores = np.where(sizes > 0, 2 * right / np.maximum(sizes, 1), 1.0)
    return mean_of_defined(np.where(_is_known(decisions), scores, np.nan))


def label_ranking_average_precision(scores: Floats, targets: Bools) -> float:
    """Return the mean over clips with a label of the average precision of their labels, ranked by score."""
    return mean_of_defined(average_precision(scores.T, targets.T))


def coverage(scores: Floats, targets: Bools) -> float:
    """Return the mean over clips with a label of how many labels, from the highest score on, hold all of theirs."""
    lowest = np.where(targets, scores, np.inf).min(axis=1)
    counts = (scores >= lowest[:, None]).sum(axis=1)
    return mean_of_defined(np.where(targets.any(axis=1), counts, np.nan))


def _is_known(decisions: Floats) -> Bools:
    """Return which clips (clip,) have a known label."""
    known: Bools = ~np.isnan(decisions)
    return np.asarray(known.any(axis=1))


def _all_right(decisions: Floats, targets: Bools) -> Floats:
    """Return 1 for clips that are decided rightly throughout, 0 for others, and NaN without a known label: (clip,)."""
    right = (np.isnan(decisions) | (decisions == targets)).all(axis=1)
    return np.where(_is_known(decisions), right, np.nan)


# A share of decisions with several labels a clip.
_of_decisions = partial(Metric, takes="known_decisions", percent=True, digits=1, label_kinds=("many",), headline=())

METRICS = (
    _of_decisions(
        "hamming_score",
        "Hamming score",
        "the share of all labels that are decided rightly, for and against",
        hamming_score,
    ),
    _of_decisions(
        "all_zeros_hamming_score",
        "Hamming score, all zeros",
        "the Hamming score of deciding for nothing",
        all_zeros_hamming_score,
        in_tables=False,
    ),
    _of_decisions(
        "exact_match",
        "Exact match",
        "the share of clips for which exactly their labels are decided",
        exact_match,
        interval=exact_match_interval,
        in_tables=False,
    ),
    _of_decisions(
        "sample_f1",
        "Sample F1",
        "the mean over clips of the F1 score of their labels",
        sample_f1,
        in_tables=False,
    ),
    Metric(
        "label_ranking_average_precision",
        "LRAP",
        "the label ranking average precision: the mean over clips of the average precision of their labels",
        label_ranking_average_precision,
        percent=True,
        digits=1,
        label_kinds=("many",),
        headline=(),
    ),
    Metric(
        "coverage",
        "Coverage",
        "the mean over clips of how many labels, from the highest score on, hold all of the clip’s",
        coverage,
        digits=1,
        higher_is_better=False,
        label_kinds=("many",),
        in_tables=False,
        headline=(),
    ),
)
