"""Intervals over the test clips of a fold: against SciPy, by brute force, and by how often they cover."""

import math

import numpy as np
import pytest
from scipy import stats

from pipeline.evaluation import intervals
from pipeline.evaluation.intervals import map_interval, wilson_interval
from pipeline.evaluation.metric_functions import average_precision


@pytest.mark.parametrize(("hits", "count"), [(5, 10), (72, 80), (0, 20), (20, 20)])
def test_wilson_agrees_with_scipy(hits: int, count: int) -> None:
    expected = stats.binomtest(hits, count).proportion_ci(0.95, method="wilson")
    assert wilson_interval(hits / count, count) == pytest.approx((expected.low, expected.high), abs=1e-8)


def draw(generator: np.random.Generator, num_clips: int, levels: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Return scores with many ties and targets, (clip, class); the last class has no positive."""
    targets = (generator.random((num_clips, 5)) < 0.25).astype(float)
    targets[:, 4] = 0
    return np.round((generator.random((num_clips, 5)) + 0.5 * targets) * levels) / levels, targets


def test_a_resample_has_the_average_precision_of_its_clips() -> None:
    """The fast way, by weights of clips that are sorted once, is that of clips written down as often as they were drawn."""
    generator = np.random.default_rng(0)
    scores, targets = draw(generator, 40)
    weights = intervals._draw(generator, 40, 25)
    assert (weights.sum(axis=0) == 40).all()
    for number in range(4):
        found = intervals._RankedClass(scores[:, number], targets[:, number] > 0).average_precision(weights)
        for row, value in zip(weights.T, found, strict=True):
            clips = np.repeat(np.arange(40), row)
            expected = average_precision(scores[clips], targets[clips])[number]
            assert value == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_counts_are_wide_enough_for_all_clips() -> None:
    generator = np.random.default_rng(0)
    for num_clips, kind in ((32_767, np.int16), (32_768, np.int32)):
        weights = intervals._draw(generator, num_clips, 1)
        assert weights.dtype == kind
        last = intervals._RankedClass(-np.arange(num_clips, dtype=float), np.arange(num_clips) == num_clips - 1)
        found = last.average_precision(np.maximum(weights, np.eye(num_clips, 1, 1 - num_clips, dtype=kind)))
        assert 0 < found[0] < 1e-2  # the only hit stands last, behind all others


def test_the_interval_is_that_of_the_resamples() -> None:
    scores, targets = draw(np.random.default_rng(1), 60)
    generator, means = np.random.default_rng(0), []
    for _ in range(intervals.RESAMPLES // 100):
        for clips in generator.integers(0, 60, (100, 60)):
            means.append(np.nanmean(average_precision(scores[clips], targets[clips])[:4]))
    assert map_interval(scores, targets) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=1e-12)
    assert map_interval(scores, targets) == map_interval(scores, targets)


def test_certain_and_undefined_values() -> None:
    targets = np.eye(3)[np.arange(30) % 3]
    assert map_interval(targets, targets) == (1.0, 1.0)
    assert all(math.isnan(limit) for limit in map_interval(targets, targets * 0))


def test_the_interval_covers_what_it_is_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """mAP of 80 clips of ten classes, as a fold of ESC-10 has: within 3 points of 95 % in 200 draws (here 96.5)."""
    monkeypatch.setattr(intervals, "RESAMPLES", 200)
    generator = np.random.default_rng(2)
    targets = np.eye(10)[np.arange(80) % 10]
    draws = [3 * targets + generator.normal(size=targets.shape) for _ in range(200)]
    expected = np.mean([average_precision(scores, targets).mean() for scores in draws])
    covered = [low <= expected <= high for low, high in (map_interval(scores, targets) for scores in draws)]
    assert 0.92 <= np.mean(covered) <= 0.99
