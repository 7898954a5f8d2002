"""Thresholds of decisions where a clip may have several labels: fixed, or fitted on clips that no model trained on.

A class is decided for where its probability reaches its threshold. Thresholds are fitted on a fold's validation clips, or,
where it has none, on its training clips, each scored by the inner fold that tests it (`pipeline/evaluation/inner_folds.py`);
never on test clips. Choosing by F1: Lipton, Elkan and Naryanaswamy (2014), "Optimal thresholding of classifiers to maximize
F1 measure".

Conventions: scores and targets (clip, class) as in `pipeline/evaluation/metric_functions.py`; thresholds (class,) of
probabilities.
"""

from collections.abc import Callable
from typing import Annotated, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field, PositiveInt

from pipeline.artifacts.clips import LabelKind
from pipeline.errors import ParamsError
from pipeline.evaluation.metric_functions import Bools, Floats, ratio, validate
from pipeline.params import Params

Share = Annotated[float, Field(gt=0, lt=1)]

# Steps of the search for one threshold, in logits: 0.02 apart, so that also the small scores of rare classes are told apart.
_GRID = 1 / (1 + np.exp(-np.linspace(-12, 12, 1201)))


class FixedThreshold(Params):
    """One threshold, given."""

    kind: Literal["fixed"]
    value: Share  # of every class


class GlobalThreshold(Params):
    """One threshold of all classes, fitted."""

    kind: Literal["global"]
    metric: Literal["macro_f1", "micro_f1", "hamming_score"]  # that it maximises


class ClassThresholds(Params):
    """A threshold of each class, fitted to maximise the class's F1."""

    kind: Literal["per_class"]
    min_positives: PositiveInt  # clips with the class; one with fewer has the threshold of all classes, by macro F1


FittedThresholds: TypeAlias = GlobalThreshold | ClassThresholds
ThresholdParams: TypeAlias = Annotated[FixedThreshold | FittedThresholds, Field(discriminator="kind")]


def require_several_labels(params: ThresholdParams, label_kind: LabelKind) -> None:
    """Raise ParamsError where thresholds are to be fitted with one label a clip."""
    if label_kind == "one" and params.kind != "fixed":
        raise ParamsError(
            f"thresholds.kind: expected fixed for a corpus with one label a clip, where the likeliest class is decided for, "
            f"found {params.kind}; set thresholds.kind=fixed and thresholds.value=0.5"
        )


def fit_thresholds(params: FittedThresholds, scores: ArrayLike, targets: ArrayLike) -> Floats:
    """Return the thresholds (class,) that are best for scores and targets, of which NaN is unknown.

    Raises ValueError as `validate` does.
    """
    values, positives = validate(scores, targets)
    if params.kind == "global":
        return np.full(values.shape[1], best_threshold(values, positives, _GOALS[params.metric]))
    thresholds = np.full(values.shape[1], best_threshold(values, positives, macro_f1))
    for position in np.flatnonzero(positives.sum(axis=0) >= params.min_positives):
        known = ~np.isnan(values[:, position])
        thresholds[position] = best_f1_threshold(values[known, position], positives[known, position])
    return thresholds


def best_f1_threshold(scores: Floats, positives: Bools) -> float:
    """Return the threshold with the highest F1 of one class, from known scores and positives (clip,) with one at least.

    It lies halfway between the lowest score that is decided for and the next one; of equally good ones it is the highest.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # equal scores are decided alike
    found = np.cumsum(positives[order])[ends]
    best = int(np.argmax(2 * found / (ends + 1 + positives.sum())))
    below = ranked[ends[best] + 1] if ends[best] + 1 < len(ranked) else 0.0
    return _between(float(below), float(ranked[ends[best]]))


def best_threshold(scores: Floats, positives: Bools, goal: "Goal") -> float:
    """Return the one threshold of a grid with the highest goal; of a row of equally good ones the middle."""
    values = goal(_Counts(scores, positives, _GRID))
    best = np.flatnonzero(values == values.max())
    row = best[: np.flatnonzero(np.append(np.diff(best) != 1, True))[0] + 1]  # the first row without a gap
    return float(_GRID[row[len(row) // 2]])


class _Counts:
    """Counts of decisions at each of some ascending thresholds, by class: arrays (threshold, class)."""

    def __init__(self, scores: Floats, positives: Bools, thresholds: Floats) -> None:
        known = ~np.isnan(scores)
        self.num_known, self.num_positives = known.sum(axis=0), positives.sum(axis=0)
        columns = range(scores.shape[1])
        self.decided = np.stack([_reaching(scores[known[:, i], i], thresholds) for i in columns], axis=1)
        self.hits = np.stack([_reaching(scores[positives[:, i], i], thresholds) for i in columns], axis=1)


Goal: TypeAlias = Callable[[_Counts], Floats]  # counts -> (threshold,)


def macro_f1(counts: _Counts) -> Floats:
    """Return the mean F1 of the classes with a positive; 0 where there is none."""
    present = counts.num_positives > 0
    if not present.any():
        return np.zeros(len(counts.hits))
    scores: Floats = (2 * counts.hits / np.maximum(counts.decided + counts.num_positives, 1))[:, present].mean(axis=1)
    return scores


def micro_f1(counts: _Counts) -> Floats:
    """Return F1 of all decisions together."""
    decided = counts.decided.sum(axis=1) + counts.num_positives.sum()
    return ratio(2 * counts.hits.sum(axis=1), decided, empty=0.0)


def hamming_score(counts: _Counts) -> Floats:
    """Return the share of known labels that are decided rightly."""
    wrong = counts.decided + counts.num_positives - 2 * counts.hits
    score: Floats = 1 - wrong.sum(axis=1) / max(int(counts.num_known.sum()), 1)
    return score


_GOALS: dict[str, Goal] = {"macro_f1": macro_f1, "micro_f1": micro_f1, "hamming_score": hamming_score}


def _reaching(scores: Floats, thresholds: Floats) -> np.ndarray:
    """Count the scores (clip,) that reach each threshold."""
    return len(scores) - np.searchsorted(np.sort(scores), thresholds, side="left")


def _between(low: float, high: float) -> float:
    """Return a number above `low` and at most `high`, half-way where there is one between."""
    middle = (low + high) / 2
    return middle if low < middle <= high else high
