"""Choice of the clips that pages show: classes in turn, the most confident mistakes, and no clip of another fold's test."""

import numpy as np

from pipeline.evaluation.choosing import (
    ScoredExperiment,
    ShownClips,
    choose_examples,
    choose_in_turn,
    choose_mistakes,
    choose_shown,
    order_by_hash,
)
from pipeline.evaluation.ensemble import ScoredClips

CLASSES = ("dog", "rain")


def scored(fold: str, clips: dict[str, tuple[list[float], list[int]]]) -> ScoredClips:
    """Return clips of a fold: id -> scores and targets, of any number of labels."""
    scores, targets = (np.array(values) for values in zip(*clips.values(), strict=True))
    return ScoredClips(fold, CLASSES, "many", tuple(clips), scores, targets.astype(np.float32))


def experiment() -> ScoredExperiment:
    """Return two models on two folds. Both folds test `both`, which counts in the first."""
    sure = {
        "a": ([0.9, 0.1], [1, 0]),  # right
        "b": ([0.8, 0.3], [0, 1]),  # wrong, and one class missed
        "none": ([0.6, 0.2], [0, 0]),  # wrong, of no class
        "both": ([0.1, 0.9], [0, 1]),
    }
    second = {"c": ([0.2, 0.95], [1, 0]), "both": ([0.99, 0.1], [0, 1]), "d": ([0.4, 0.4], [1, 0])}  # d: missed alone
    first_again = sure | {"b": ([0.7, 0.3], [0, 1]), "a": ([0.1, 0.85], [1, 0])}
    scores = {
        ("one", "1"): scored("1", sure),
        ("one", "2"): scored("2", second),
        ("two", "1"): scored("1", first_again),
        ("two", "2"): scored("2", second),
    }
    fold_of = {"a": "1", "b": "1", "none": "1", "both": "1", "c": "2", "d": "2"}
    return ScoredExperiment(("one", "two"), ("1", "2"), scores, fold_of)


def test_the_surest_mistakes_come_first_and_each_clip_once() -> None:
    scores = experiment()
    assert choose_mistakes(scores, ["one"], 9) == ["c", "b", "none"]
    assert choose_mistakes(scores, ["one", "two"], 9) == ["c", "a", "b", "none"]
    assert choose_mistakes(scores, ["two", "one"], 2) == ["c", "a"]
    assert choose_mistakes(scores, ["one"], 0) == []


def test_mistakes_that_are_as_sure_come_by_name() -> None:
    wrong = {name: ([0.8, 0.1], [0, 1]) for name in ("z", "y", "x")}
    scores = ScoredExperiment(("m",), ("1",), {("m", "1"): scored("1", wrong)}, dict.fromkeys(wrong, "1"))
    assert choose_mistakes(scores, ["m"], 2) == ["x", "y"]


def test_examples_have_a_class_and_come_once_from_the_fold_that_tests_them() -> None:
    scores = experiment()
    chosen = choose_examples(scores, 9)
    assert sorted(chosen) == ["a", "b", "both", "c", "d"]
    kinds = [clip in ("a", "c", "d") for clip in chosen]
    assert kinds == [True, False, True, False, True]  # classes in turn
    assert choose_examples(scores, 2) == chosen[:2]


def test_classes_take_turns_and_clips_of_a_class_come_by_hash() -> None:
    clips = [(f"dog{i}", 0) for i in range(5)] + [("rain0", 1)]
    chosen = choose_in_turn(clips, 2, 9)
    dogs = order_by_hash([f"dog{i}" for i in range(5)])
    assert chosen == [dogs[0], "rain0", *dogs[1:]]
    assert choose_in_turn(reversed(clips), 2, 3) == chosen[:3]
    assert choose_in_turn(clips, 2, 1) == chosen[:1]  # in the middle of a turn
    assert dogs != sorted(dogs)


def test_a_clip_in_both_lists_is_shown_once() -> None:
    shown = choose_shown(experiment(), ["one"], examples=4, mistakes=2)
    assert shown.mistakes == ("c", "b")
    assert len(shown.examples) == 4
    assert ShownClips(("a", "b"), ("c", "a")).all == ["a", "b", "c"]
