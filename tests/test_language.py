"""Perplexity by class: fitted on training clips alone, measured on test clips alone, and known where sound is certain."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.evaluation.ensemble import ScoredClips
from pipeline.reporting import language
from pipeline.reporting.language import ALL_CLASSES, measure_language, over_folds, write_language

CLASSES = ("steady", "alternating", "noise", "silent")
TRAINING = [f"train{number}" for number in range(30)]
TEST = [f"test{number}" for number in range(9)]


def make_tokens(num_codebooks: int = 2) -> dict[str, np.ndarray]:
    """Return clips of three kinds in turn: one word for ever, two in turn, any of sixteen."""
    generator = np.random.default_rng(0)
    tokens = {}
    for number, clip in enumerate([*TRAINING, *TEST]):
        shape = (num_codebooks, 100)
        kinds = (np.full(shape, 3), np.tile([5, 6], (num_codebooks, 50)), generator.integers(0, 16, shape))
        tokens[clip] = kinds[number % 3].astype(np.uint16)
    return tokens


def make_test_clips(fold: str = "1") -> ScoredClips:
    targets = np.eye(4, dtype=np.float32)[np.arange(len(TEST)) % 3]
    return ScoredClips(fold, CLASSES, "one", tuple(TEST), np.zeros_like(targets, dtype=np.float64), targets)


def measure(tokens: dict[str, np.ndarray], **changes: Any) -> dict[tuple[str, int], language.LanguageRow]:
    seconds = dict.fromkeys(tokens, 2.0)
    settings = {"size": 16, "training_clips": TRAINING, "test": make_test_clips(), "seconds": seconds} | changes
    return {(row.class_name, row.order): row for row in measure_language(tokens, **settings)}


def test_what_is_certain_is_foretold_and_noise_is_not() -> None:
    rows = measure(make_tokens())
    assert rows["steady", 2].perplexity < 1.2
    # Half of the noise's pairs were never heard; a hundred words of it are too few to know that they are as likely.
    assert 12 < rows["noise", 1].perplexity < 40
    assert rows["noise", 3].perplexity > 12
    assert rows["alternating", 1].perplexity > 4
    assert rows["alternating", 2].perplexity < 1.2
    assert ("silent", 1) not in rows


def test_rows_add_up() -> None:
    rows = measure(make_tokens())
    for order in (1, 2, 3):
        own = [rows[name, order] for name in CLASSES[:3]]
        everyone = rows[ALL_CLASSES, order]
        assert everyone.num_clips == sum(row.num_clips for row in own) == 9
        assert everyone.num_words == sum(row.num_words for row in own) == 9 * 2 * 100
        assert np.isclose(everyone.bits, sum(row.bits for row in own))
        assert np.isclose(everyone.bits_per_second, np.log2(everyone.perplexity) * 100 * 2 / 2)


def test_only_training_clips_are_learnt_from() -> None:
    """Other test clips change nothing about one; other training clips do."""
    tokens = make_tokens()
    poisoned = {clip: words if clip in (*TRAINING, "test2") else words * 0 + 9 for clip, words in tokens.items()}
    alone = ScoredClips("1", CLASSES, "one", ("test2",), np.zeros((1, 4)), np.eye(4, dtype=np.float32)[[2]])
    assert measure(tokens, test=alone) == measure(poisoned, test=alone)
    poisoned["train2"] = poisoned["train2"] * 0 + 9
    assert measure(tokens, test=alone) != measure(poisoned, test=alone)


def test_no_more_words_are_counted_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    count = language.count_ngrams
    monkeypatch.setattr(
        language, "count_ngrams", lambda s, *a, **k: counted.append(sum(map(len, s))) or count(s, *a, **k)
    )
    monkeypatch.setattr(language, "_MOST_WORDS", 1500)
    measure(make_tokens())
    assert set(counted) == {1400}  # seven clips of 2 x 100 words


def test_a_clip_of_two_classes_counts_in_both() -> None:
    targets = np.zeros((9, 4), np.float32)
    targets[:, 0] = targets[:4, 3] = 1
    both = ScoredClips("1", CLASSES, "many", tuple(TEST), np.zeros((9, 4)), targets)
    rows = measure(make_tokens(), test=both)
    assert rows["steady", 1].bits == rows[ALL_CLASSES, 1].bits
    assert rows["silent", 1].num_clips == 4


def test_folds_are_joined_and_written(tmp_path: Path) -> None:
    tokens = make_tokens()
    folds = [list(measure(tokens, test=make_test_clips(fold)).values()) for fold in "12"]
    joined = over_folds([*folds[0], *folds[1]])
    assert list(joined)[-1] == "noise"
    assert joined["steady"][0].num_clips == 6
    assert np.isclose(joined["noise"][2].perplexity, folds[0][-1].perplexity)
    write_language(tmp_path / "language.csv", {"words": folds[0]})
    with (tmp_path / "language.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 4
    assert rows[0]["class"] == ALL_CLASSES
    assert float(rows[0]["perplexity"]) == round(folds[0][0].perplexity, 6)
