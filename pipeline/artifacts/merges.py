"""Merged tokens of a vocabulary: which base tokens they are made of, and what they stand for together.

Conventions: base tokens 0 .. num_base - 1 are those of all codebooks, the tokens of codebook b shifted by b * size. `merges`
(merge, 2) int32 are pairs of tokens in the order in which they were learnt. A pair's joint token gets the next id behind all
tokens before it, unless another pair spells the same token already: then both mean that one.
"""

from collections.abc import Sequence

import numpy as np


def token_parts(merges: np.ndarray, num_base: int) -> list[tuple[int, ...]]:
    """Return the base tokens that each token is made of, in order; a base token is made of itself.

    Raises ValueError when a merge joins tokens that do not exist by then.
    """
    parts: list[tuple[int, ...]] = [(token,) for token in range(num_base)]
    known = set(parts)
    for number, (left, right) in enumerate(merges.tolist()):
        if not 0 <= min(left, right) <= max(left, right) < len(parts):
            raise ValueError(f"merge {number} joins {left} and {right}, where there are {len(parts)} tokens by then")
        joint = parts[left] + parts[right]
        if joint not in known:
            known.add(joint)
            parts.append(joint)
    return parts


def merged_vectors(
    parts: Sequence[tuple[int, ...]], codebooks: Sequence[np.ndarray], bands: Sequence[Sequence[int]]
) -> np.ndarray:
    """Return every token as a vector (token, feature) float32: the mean over time of the base tokens it is made of.

    `codebooks` holds each codebook's base tokens (token, feature of its band), all with as many tokens; `bands` the features
    [from, to) that each covers. Codes of one frame add up where bands overlap, as in rebuilding. A merged token may begin or
    end within a frame; a feature is averaged over the frames in which the token speaks of it, and 0 where it never does.
    """
    size, width = len(codebooks[0]), max(stop for _, stop in bands)
    vectors = np.zeros((len(codebooks) * size, width), dtype=np.float32)
    covers = np.zeros((len(codebooks), width), dtype=bool)
    for number, (codebook, (start, stop)) in enumerate(zip(codebooks, bands, strict=True)):
        vectors[number * size : (number + 1) * size, start:stop] = codebook
        covers[number, start:stop] = True
    means = np.empty((len(parts), width), dtype=np.float32)
    means[: len(vectors)] = vectors
    for token in range(len(vectors), len(parts)):
        made_of = np.array(parts[token])
        books = made_of // size
        starts = np.flatnonzero(np.concatenate([[True], books[1:] == 0]))  # of frames
        covering = np.logical_or.reduceat(covers[books], starts, axis=0).sum(axis=0)
        means[token] = vectors[made_of].sum(axis=0) / np.maximum(covering, 1)
    return means
