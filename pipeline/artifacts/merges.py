"""Merged tokens of a vocabulary (byte-pair encoding): the base tokens of each, and their mean vectors.

Conventions: base tokens 0 .. num_base - 1 are those of all codebooks, the tokens of codebook b shifted by b * size. `merges`
(merge, 2) int32 are pairs of tokens in the order in which they were learned. A pair's merged token gets the next free id,
unless an earlier pair has the same base tokens: then both are that token.
"""

from collections.abc import Sequence

import numpy as np


def token_parts(merges: np.ndarray, num_base: int) -> list[tuple[int, ...]]:
    """Return the base tokens of each token, in order; a base token has itself.

    Raises ValueError when a merge joins tokens that are not defined before it.
    """
    parts: list[tuple[int, ...]] = [(token,) for token in range(num_base)]
    known = set(parts)
    for number, (left, right) in enumerate(merges.tolist()):
        if not 0 <= min(left, right) <= max(left, right) < len(parts):
            raise ValueError(
                f"merge {number} joins {left} and {right}, where only tokens below {len(parts)} are defined"
            )
        joint = parts[left] + parts[right]
        if joint not in known:
            known.add(joint)
            parts.append(joint)
    return parts


def merged_vectors(
    parts: Sequence[tuple[int, ...]], codebooks: Sequence[np.ndarray], bands: Sequence[Sequence[int]]
) -> np.ndarray:
    """Return every token as a vector (token, feature) float32: the mean over time of its base tokens.

    `codebooks` holds each codebook's base tokens (token, feature of its band), all of one size; `bands` the features [from,
    to) that each covers. Codes of one frame add up where bands overlap, as in reconstruction. A merged token may begin or
    end within a frame; a feature is averaged over the frames in which the token covers it, and 0 where it covers it in none.
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
