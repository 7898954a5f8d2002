"""Merged words of a vocabulary: which base words they are made of, and what they stand for together.

Conventions: base words 0 .. num_base - 1 are those of all codebooks, the words of codebook b shifted by b * size. `merges`
(merge, 2) int32 are pairs of words in the order in which they were learnt. A pair's joint word gets the next id behind all
words before it, unless another pair spells the same word already: then both mean that one.
"""

from collections.abc import Sequence

import numpy as np


def word_parts(merges: np.ndarray, num_base: int) -> list[tuple[int, ...]]:
    """Return the base words that each word is made of, in order; a base word is made of itself.

    Raises ValueError when a merge joins words that do not exist by then.
    """
    parts: list[tuple[int, ...]] = [(word,) for word in range(num_base)]
    known = set(parts)
    for number, (left, right) in enumerate(merges.tolist()):
        if not 0 <= min(left, right) <= max(left, right) < len(parts):
            raise ValueError(f"merge {number} joins {left} and {right}, where there are {len(parts)} words by then")
        joint = parts[left] + parts[right]
        if joint not in known:
            known.add(joint)
            parts.append(joint)
    return parts


def merged_vectors(
    parts: Sequence[tuple[int, ...]], codebooks: Sequence[np.ndarray], bands: Sequence[Sequence[int]]
) -> np.ndarray:
    """Return every word as a vector (word, feature) float32: the mean over time of the base words it is made of.

    `codebooks` holds each codebook's base words (word, feature of its band), all with as many words; `bands` the features
    [from, to) that each covers. Codes of one frame add up where bands overlap, as in rebuilding. A merged word may begin or
    end within a frame; a feature is averaged over the frames in which the word speaks of it, and 0 where it never does.
    """
    size, width = len(codebooks[0]), max(stop for _, stop in bands)
    vectors = np.zeros((len(codebooks) * size, width), dtype=np.float32)
    covers = np.zeros((len(codebooks), width), dtype=bool)
    for number, (codebook, (start, stop)) in enumerate(zip(codebooks, bands, strict=True)):
        vectors[number * size : (number + 1) * size, start:stop] = codebook
        covers[number, start:stop] = True
    means = np.empty((len(parts), width), dtype=np.float32)
    means[: len(vectors)] = vectors
    for word in range(len(vectors), len(parts)):
        made_of = np.array(parts[word])
        books = made_of // size
        starts = np.flatnonzero(np.concatenate([[True], books[1:] == 0]))  # of frames
        spoken = np.logical_or.reduceat(covers[books], starts, axis=0).sum(axis=0)
        means[word] = vectors[made_of].sum(axis=0) / np.maximum(spoken, 1)
    return means
