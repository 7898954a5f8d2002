"""Byte-pair encoding: it merges what a reference in plain Python merges, and takes every token sequence apart again."""

import itertools
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts.merges import merged_vectors, token_parts
from pipeline.errors import CorpusError, SonolexError
from pipeline.vocabulary.bpe import Merger, interleave, learn_merges, separate


def make_sequences(num_base: int, count: int = 12, length: int = 90, seed: int = 0) -> list[np.ndarray]:
    """Return token sequences with long runs, as steady sounds have them, and few of the possible pairs."""
    generator = np.random.default_rng(seed)
    sequences = []
    for _ in range(count):
        tokens = np.minimum(generator.geometric(0.2, length), num_base) - 1
        sequences.append(np.repeat(tokens, generator.integers(1, 5, length))[: generator.integers(1, length)])
    return sequences


def merge_pair(sequence: list[str], left: str, right: str) -> list[str]:
    """Join every occurrence of a pair, from left to right."""
    merged: list[str] = []
    for token in sequence:
        if merged and merged[-1] == left and token == right:
            merged[-1] = left + right
            # What was just joined is not joined again under the same merge.
            merged[-1] += "|"
        else:
            merged.append(token)
    return [token.rstrip("|") for token in merged]


def reference_tokens(sequences: list[np.ndarray], num_base: int, size: int) -> list[str]:
    """Return the tokens that byte-pair encoding finds, spelt in ASCII: every step counts all pairs anew."""
    texts = [[chr(97 + token) for token in sequence] for sequence in sequences]
    tokens = [chr(97 + token) for token in range(num_base)]
    while len(tokens) < size:
        counts = Counter((a, b) for text in texts for a, b in itertools.pairwise(text))
        ids = {token: number for number, token in enumerate(tokens)}
        left, right = min(counts, key=lambda pair: (-counts[pair], ids[pair[0]], ids[pair[1]]))
        if left + right not in ids:
            tokens.append(left + right)
        texts = [merge_pair(text, left, right) for text in texts]
    return tokens


def test_tokens_are_those_of_a_reference_that_counts_every_pair_anew() -> None:
    sequences = make_sequences(6)
    parts = token_parts(learn_merges(sequences, num_base=6, size=20), 6)
    assert ["".join(chr(97 + token) for token in made_of) for made_of in parts] == reference_tokens(sequences, 6, 20)


def test_a_pair_by_hand() -> None:
    merges = learn_merges([np.array([0, 1, 0, 1, 2]), np.array([2, 0, 1])], num_base=3, size=4)
    assert merges.tolist() == [[0, 1]]
    assert Merger(merges, 3).merge(np.array([1, 0, 1, 0, 0, 1, 2])).tolist() == [1, 3, 0, 3, 2]


@pytest.mark.parametrize("seed", range(20))
def test_every_sequence_comes_back(seed: int) -> None:
    """Sequences that the merges never saw, of tokens that they never saw, of any length, come back to the last token."""
    generator = np.random.default_rng(seed)
    num_codebooks, size = int(generator.integers(1, 5)), int(generator.integers(2, 40))
    num_base = num_codebooks * size
    learnt = [interleave(generator.integers(0, max(2, size // 2), (num_codebooks, 60)), size) for _ in range(8)]
    merger = Merger(learn_merges(learnt, num_base=num_base, size=num_base + 12), num_base)
    for num_frames in (0, 1, 2, 117):
        tokens = generator.integers(0, size, (num_codebooks, num_frames)).astype(np.uint16)
        merged = merger.merge(interleave(tokens, size))
        assert merged.dtype == np.uint16
        back = separate(merger.split(merged), num_codebooks, size)
        assert back.dtype == np.uint16
        assert np.array_equal(back, tokens)


def test_sequences_of_training_become_shorter() -> None:
    sequences = make_sequences(6, count=40)
    merger = Merger(learn_merges(sequences, num_base=6, size=60), 6)
    assert sum(len(merger.merge(s)) for s in sequences) < 0.4 * sum(map(len, sequences))


def test_codebooks_are_interleaved_frame_by_frame() -> None:
    assert interleave(np.array([[0, 1], [4, 3]], np.uint16), 5).tolist() == [0, 9, 1, 8]


def test_the_same_merges_in_any_order_of_clips_and_with_any_threads() -> None:
    sequences = make_sequences(8, count=60)
    merges = learn_merges(sequences, num_base=8, size=120)
    assert np.array_equal(learn_merges(sequences[::-1], num_base=8, size=120), merges)
    program = (
        "import sys; sys.path.insert(0, 'tests'); from test_bpe import *\n"
        "print(learn_merges(make_sequences(8, count=60), num_base=8, size=120).tolist())"
    )
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(Path.cwd())}
    alone = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert alone.stdout.strip() == str(merges.tolist())


def test_two_pairs_that_spell_one_token_mean_one_token() -> None:
    """0 1 2 is learnt as (0 1) 2 and as 0 (1 2): one id, or token sequences would have two tokens for one sound."""
    merges = np.array([[0, 1], [1, 2], [3, 2], [0, 4], [5, 0]], np.int32)
    assert token_parts(merges, 3) == [(0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2), (0, 1, 2, 0)]
    assert Merger(merges, 3).merge(np.array([0, 1, 2, 0])).tolist() == [6]


def test_tokens_that_are_not_there_are_named() -> None:
    merger = Merger(np.array([[0, 1]], np.int32), 3)
    with pytest.raises(SonolexError, match="expected tokens from 0 to 2, found 1 to 3"):
        merger.merge(np.array([1, 3]))
    with pytest.raises(SonolexError, match="expected tokens from 0 to 3, found 0 to 4"):
        merger.split(np.array([0, 4]))
    with pytest.raises(ValueError, match="merge 1 joins 4 and 0, where only tokens below 4 are defined"):
        Merger(np.array([[0, 1], [4, 0]], np.int32), 3)
    with pytest.raises(SonolexError, match="expected tokens from 0 to 2, found 0 to 7"):
        learn_merges([np.array([0, 7])], num_base=3, size=4)


def test_sequences_in_another_order_are_named() -> None:
    for sequence in ([0, 9, 1], [9, 0]):
        with pytest.raises(SonolexError, match="expected whole frames of 2 codebooks with 5 each"):
            separate(np.array(sequence), 2, 5)


def test_more_tokens_than_pairs_that_repeat_is_an_error() -> None:
    with pytest.raises(
        CorpusError, match=r"vocabularies\.\*\.bpe.num_tokens: .* for 9, found 5 when no pair occurred 2 times"
    ):
        learn_merges([np.array([0, 1, 2, 0, 1, 2])], num_base=3, size=9)
    for size in (3, 2, 65534):
        with pytest.raises(
            CorpusError, match=rf"more tokens than the 3 that are merged .* at most 65533, found {size}"
        ):
            learn_merges([np.array([0, 1, 0, 1])], num_base=3, size=size)


def test_a_merged_token_is_the_mean_over_time_of_its_parts() -> None:
    codebooks = [np.array([[1.0, 2], [3, 4]], np.float32)]
    parts = token_parts(np.array([[0, 1], [2, 1]]), 2)
    vectors = merged_vectors(parts, codebooks, [[0, 2]])
    assert np.allclose(vectors, [[1, 2], [3, 4], [2, 3], [7 / 3, 10 / 3]])


def test_parts_of_one_frame_add_up_and_bands_are_averaged_apart() -> None:
    codebooks = [np.array([[1.0], [3]], np.float32), np.array([[10.0], [30]], np.float32)]
    # base tokens: 0, 1 of the first codebook, 2, 3 of the second; 4 = one frame, 5 = that frame and half the next
    parts = token_parts(np.array([[0, 2], [4, 1], [2, 1]]), 4)
    apart = merged_vectors(parts, codebooks, [[0, 1], [1, 2]])
    assert np.allclose(apart[[0, 2, 4, 5, 6]], [[1, 0], [0, 10], [1, 10], [2, 10], [3, 10]])
    added = merged_vectors(parts, codebooks, [[0, 1], [0, 1]])
    assert np.allclose(added[[0, 2, 4, 5, 6]], [[1], [10], [11], [(11 + 3) / 2], [(10 + 3) / 2]])
