"""N-gram models of token sequences: how likely each token is after those before it.

Interpolated Kneser-Ney smoothing (Kneser and Ney, 1995; in the form of Chen and Goodman, 1998): every count gives up a
discount, and what was given up is dealt out by the model of one token less. Lower orders count behind how many different
tokens a token occurred, not how often. Discounts are estimated from the counts themselves (Ney, Essen and Kneser, 1994).

Conventions: a token sequence (position,) holds tokens 0 .. size - 1 and belongs to one of several groups with counts of its
own. Grams of k tokens are level k of a tree. They are numbered in the order of their keys: number of the gram without
its last token (at level 1: of the group) * size + last token. A clip is cut out of a longer sound, so nothing marks where
it begins: its first tokens are predicted from what tokens there are. Functions that take token sequences return values for
their tokens end to end.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

_TOKENS_PER_BLOCK = 1 << 20  # bounds what is looked up at once


@dataclass(frozen=True)
class Level:
    """The grams of one length."""

    size: int  # tokens
    num_contexts: int  # grams of one token less; at level 1 languages
    keys: np.ndarray  # (gram,) int64, ascending
    counts: (
        np.ndarray
    )  # (gram,) float32: at the highest level how often they occurred, at others behind how many tokens

    @cached_property
    def discount(self) -> float:
        """Discount subtracted from every count, 0 to 1: n1 / (n1 + 2 n2) of the grams counted once and twice.

        Half a gram is added above and one below: without any that are rare, unseen tokens keep a little probability.
        """
        once, twice = (int((self.counts == times).sum()) for times in (1, 2))
        return (once + 0.5) / (once + 2 * twice + 1)

    @cached_property
    def totals(self) -> np.ndarray:
        """The sum of the counts behind each context, and a 0 for -1, none: (context + 1,) float64."""
        return np.bincount(self.keys // self.size, weights=self.counts, minlength=self.num_contexts + 1)

    @cached_property
    def kinds(self) -> np.ndarray:
        """Number of distinct tokens after each context, and a 0 for -1, none: (context + 1,) float64."""
        return np.bincount(self.keys // self.size, weights=self.counts > 0, minlength=self.num_contexts + 1)

    def find(self, contexts: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Return the number of each gram, -1 for those that are not there; `contexts` may hold -1 likewise."""
        wanted = contexts * self.size + tokens
        places = np.searchsorted(self.keys, wanted)
        found = (contexts >= 0) & (np.append(self.keys, -1)[places] == wanted)
        return np.where(found, places, -1)

    def interpolate(self, contexts: np.ndarray, tokens: np.ndarray, lower: np.ndarray) -> np.ndarray:
        """Return the tokens' probabilities behind `contexts`, given those at the level below (`lower`)."""
        counts = np.append(self.counts, 0)[self.find(contexts, tokens)]
        totals = self.totals[contexts]
        dealt_out = self.discount * self.kinds[contexts] * lower
        return np.where(totals > 0, (np.maximum(counts - self.discount, 0) + dealt_out) / np.maximum(totals, 1), lower)


def count_ngrams(
    sequences: Sequence[np.ndarray], groups: Sequence[int] | np.ndarray, *, num_groups: int, size: int, order: int
) -> list[Level]:
    """Count grams of up to `order` tokens of sequences (position,), one language each. Levels come shortest first."""
    tokens, group_of, places = _end_to_end(sequences, groups)
    levels: list[Level] = []
    grams = np.empty(0, dtype=np.int64)  # of the level before, that end at each position; -1 for none
    for length in range(1, order + 1):
        at = np.flatnonzero(places >= length - 1)
        contexts = grams[at - 1] if levels else group_of[at]
        keys, first, inverse, counts = np.unique(
            contexts * size + tokens[at], return_index=True, return_inverse=True, return_counts=True
        )
        num_contexts = num_groups
        if levels:  # each gram is one more token that its tail occurs behind
            num_contexts = len(levels[-1].keys)
            behind = np.bincount(grams[at[first]], minlength=num_contexts)
            levels[-1] = Level(size, levels[-1].num_contexts, levels[-1].keys, behind.astype(np.float32))
        levels.append(Level(size, num_contexts, keys, counts.astype(np.float32)))
        grams = np.full(len(tokens), -1, dtype=np.int64)
        grams[at] = inverse
    return levels


def token_probabilities(
    levels: Sequence[Level],
    sequences: Sequence[np.ndarray],
    groups: Sequence[int] | np.ndarray,
    base: np.ndarray | None = None,
) -> np.ndarray:
    """Return the probability of every token of the token sequences in their languages: (token,) float64, never 0.

    `base` (token,) is what the single token is interpolated with: another model's probabilities; None = all tokens alike.
    """
    ends = np.cumsum([0, *map(len, sequences)])
    blocks = np.searchsorted(ends, np.arange(_TOKENS_PER_BLOCK, ends[-1], _TOKENS_PER_BLOCK))
    found = [np.empty(0)]
    for start, stop in pairwise(np.unique([0, *blocks, len(sequences)]).tolist()):
        lower = (
            np.full(ends[stop] - ends[start], 1 / levels[0].size) if base is None else base[ends[start] : ends[stop]]
        )
        found.append(_block_probabilities(levels, sequences[start:stop], groups[start:stop], lower))
    return np.concatenate(found)


def _block_probabilities(
    levels: Sequence[Level], sequences: Sequence[np.ndarray], groups: Sequence[int] | np.ndarray, lower: np.ndarray
) -> np.ndarray:
    tokens, contexts, places = _end_to_end(sequences, groups)
    for length, level in enumerate(levels, 1):
        lower = level.interpolate(contexts, tokens, lower)
        contexts = np.where(places >= length, np.roll(level.find(contexts, tokens), 1), -1)
    return lower


def sequence_sums(values: np.ndarray, sequences: Sequence[np.ndarray]) -> np.ndarray:
    """Return the sum of `values` (token,) over each of the sequences: (sequence,) float64; 0 for an empty one."""
    ends = np.cumsum([0, *map(len, sequences)])
    sums = np.concatenate([[0.0], np.cumsum(values)])[ends]
    return np.asarray(np.diff(sums))


def _end_to_end(
    sequences: Sequence[np.ndarray], groups: Sequence[int] | np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return all tokens, the language of each, and its place in its token sequence: (token,) int64 each."""
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    tokens = np.concatenate([np.empty(0, np.int64), *sequences]).astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    places = np.arange(len(tokens), dtype=np.int64) - np.repeat(starts, lengths)
    return tokens, np.repeat(np.asarray(groups, dtype=np.int64), lengths), places
