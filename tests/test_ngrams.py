"""N-gram models: probabilities by hand, that sum to one, and that know what comes next where that is certain."""

import itertools
from collections import Counter

import numpy as np
import pytest

from pipeline.vocabulary import ngrams
from pipeline.vocabulary.ngrams import count_ngrams, sequence_sums, token_probabilities


def make_sequences(size: int, count: int = 20, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [np.minimum(generator.geometric(0.4, generator.integers(0, 30)), size) - 1 for _ in range(count)]


def reference_probability(
    sequences: list[list[int]], context: list[int], token: int, *, size: int, order: int, length: int | None = None
) -> float:
    """Return what interpolated Kneser-Ney says, from counters and loops (Chen and Goodman, 1998, section 2.7)."""
    length = order if length is None else length
    if length == 0:
        return 1 / size
    lower_context = context[1:] if len(context) == length - 1 else context
    lower = reference_probability(sequences, lower_context, token, size=size, order=order, length=length - 1)
    if len(context) < length - 1:
        return reference_probability(sequences, context, token, size=size, order=order, length=length - 1)
    grams = [tuple(s[i : i + length]) for s in sequences for i in range(len(s) - length + 1)]
    counts = Counter(grams)
    if length < order:
        longer = {tuple(s[i : i + length + 1]) for s in sequences for i in range(len(s) - length)}
        behind = Counter(gram[1:] for gram in longer)
        counts = Counter({gram: behind[gram] for gram in counts})
    once, twice = (sum(count == times for count in counts.values()) for times in (1, 2))
    discount = (once + 0.5) / (once + 2 * twice + 1)
    own = {gram: count for gram, count in counts.items() if gram[:-1] == tuple(context)}
    total = sum(own.values())
    if not total:
        return lower
    count = own.get((*context, token), 0)
    kinds = sum(count > 0 for count in own.values())
    return (max(count - discount, 0) + discount * kinds * lower) / total


@pytest.mark.parametrize("order", [1, 2, 3])
def test_probabilities_are_those_of_a_reference_in_loops(order: int) -> None:
    size = 5
    sequences = make_sequences(size)
    levels = count_ngrams(sequences, [0] * len(sequences), num_groups=1, size=size, order=order)
    seen = [sequence.tolist() for sequence in sequences]
    new = make_sequences(size, count=6, seed=1)
    found = token_probabilities(levels, new, [0] * len(new))
    expected = [
        reference_probability(seen, s[max(0, i - order + 1) : i], s[i], size=size, order=order)
        for s in (sequence.tolist() for sequence in new)
        for i in range(len(s))
    ]
    assert len(found) > 40
    assert np.allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_probabilities_of_all_next_tokens_sum_to_one(order: int) -> None:
    """Behind contexts that were heard, that were not, and at the beginning; tokens that were never heard included."""
    size = 7
    sequences = [sequence % 5 for sequence in make_sequences(5)]
    levels = count_ngrams(sequences, [0] * len(sequences), num_groups=1, size=size, order=order)
    for context in ([], [0], [6], [0, 0, 1], [4, 3, 6], [0, 0, 0]):
        clips = [np.array([*context, token]) for token in range(size)]
        last = np.cumsum([len(clip) for clip in clips]) - 1
        probabilities = token_probabilities(levels, clips, [0] * size)[last]
        assert (probabilities > 0).all()
        assert np.isclose(probabilities.sum(), 1)


def test_a_certain_order_is_learnt_and_one_token_alone_does_not_know_it() -> None:
    cycle = np.tile([0, 1, 0, 2], 50)  # what follows 0 depends on what came before it
    perplexities = []
    for order in (1, 2, 3):
        levels = count_ngrams([cycle], [0], num_groups=1, size=3, order=order)
        perplexities.append(2 ** -np.log2(token_probabilities(levels, [cycle], [0])).mean())
    assert np.isclose(perplexities[0], 2**1.5, rtol=0.01)
    assert np.isclose(perplexities[1], 2**0.5, rtol=0.05)
    assert np.isclose(perplexities[2], 1, atol=0.05)


def test_groups_do_not_share_counts() -> None:
    first, second = make_sequences(5), make_sequences(5, seed=3)
    together = count_ngrams([*first, *second], [0] * 20 + [1] * 20, num_groups=2, size=5, order=3)
    new = make_sequences(5, count=6, seed=1)
    # Discounts are estimated over all groups, hence compare with a second group that has the same counts.
    twice = count_ngrams([*first, *first], [0] * 20 + [1] * 20, num_groups=2, size=5, order=3)
    alone = count_ngrams(first, [0] * 20, num_groups=1, size=5, order=3)
    found = [token_probabilities(twice, new, [group] * 6) for group in (0, 1)]
    assert np.allclose(found[0], found[1])
    assert np.allclose(found[0], token_probabilities(alone, new, [0] * 6), rtol=0.02)
    assert not np.allclose(*(token_probabilities(together, new, [group] * 6) for group in (0, 1)), rtol=0.1)


def test_a_base_takes_the_place_of_equal_chances() -> None:
    size = 5
    levels = count_ngrams([np.array([0, 1, 0])], [0], num_groups=1, size=size, order=1)
    base = np.array([0.0, 0.5, 1.0])
    plain, based = (token_probabilities(levels, [np.array([0, 3, 4])], [0], b) for b in (None, base))
    unseen = levels[0].discount * 2 / 3
    assert np.allclose(plain[1:], unseen / size)
    assert np.allclose(based[1:], unseen * base[1:])


def test_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    sequences = make_sequences(5)
    levels = count_ngrams(sequences, [0, 1] * 10, num_groups=2, size=5, order=3)
    base = np.random.default_rng(0).random(sum(map(len, sequences)))
    whole = token_probabilities(levels, sequences, [1, 0] * 10, base)
    monkeypatch.setattr(ngrams, "_TOKENS_PER_BLOCK", 37)
    assert np.array_equal(token_probabilities(levels, sequences, [1, 0] * 10, base), whole)


def test_sums_are_those_of_each_sequence_and_empty_ones_are_zero() -> None:
    sequences = [np.array([1, 2]), np.array([], int), np.array([3])]
    assert sequence_sums(np.array([1.0, 10, 100]), sequences).tolist() == [11, 0, 100]
    assert sequence_sums(np.empty(0), []).tolist() == []


@pytest.mark.parametrize("order", [1, 3])
def test_empty_sequences_and_no_sequences_are_no_error(order: int) -> None:
    for sequences in ([], [np.array([], np.uint16)], [np.array([2], np.uint16)]):
        levels = count_ngrams(sequences, [0] * len(sequences), num_groups=1, size=4, order=order)
        for new in ([], [np.array([], np.uint16)], [np.array([1, 2, 3], np.uint16)]):
            probabilities = token_probabilities(levels, new, [0] * len(new))
            assert len(probabilities) == sum(map(len, new))
            assert (probabilities > 0).all()


def test_the_order_of_sequences_makes_no_difference() -> None:
    sequences = make_sequences(5)
    one, other = (count_ngrams(s, [0] * 20, num_groups=1, size=5, order=3) for s in (sequences, sequences[::-1]))
    for level, same in itertools.zip_longest(one, other):
        assert np.array_equal(level.keys, same.keys)
        assert np.array_equal(level.counts, same.counts)


def test_what_occurred_once_by_hand() -> None:
    """Of the sequence 0 1: each level has one gram of count 1, hence the discount 1.5 / 2, and 0 occurs behind nothing."""
    levels = count_ngrams([np.array([0, 1])], [0], num_groups=1, size=2, order=2)
    assert [level.discount for level in levels] == [0.75, 0.75]
    single = np.array([0.75 / 2, 0.25 + 0.75 / 2])  # of 0 and of 1, behind anything
    found = token_probabilities(levels, [np.array([0, 1]), np.array([0, 0])], [0, 0])
    assert found == pytest.approx([single[0], 0.25 + 0.75 * single[1], single[0], 0.75 * single[0]])
