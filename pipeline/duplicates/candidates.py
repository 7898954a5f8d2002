"""Pairs of clips that have landmarks with close vectors, found by FAISS.

Up to `_EXACT` landmarks, each is compared with all; beyond, with those in the nearest cells of an inverted file, whose
vectors have 8 bits a value. Memory: 260 bytes a landmark, and a block of queries.
"""

from typing import Any

import numpy as np

from pipeline.duplicates.landmarks import VECTOR_SIZE
from pipeline.execution.threads import map_threads

_NEIGHBOURS = 8  # of a landmark, itself included
_LEAST_SIMILARITY = 0.7  # cosine; of copies nearly all landmarks are above it, of other clips one pair in a thousand
_EXACT = 100_000  # landmarks
_BLOCK = 4096  # queries
_CELL = 512  # landmarks in a cell, on average
_PROBED = 16  # cells
_TRAINING = 40  # landmarks per cell that its centre is learnt from
_SEED = 0


def find_candidates(owners: np.ndarray, positions: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Return the pairs to compare, (candidate, 3) int64: two clips, the lower first, and a lag in frames; sorted, distinct.

    All landmarks are given: their clips (landmark,), positions (landmark,) in frames, and vectors (landmark, VECTOR_SIZE).
    """
    if not len(vectors):
        return np.zeros((0, 3), dtype=np.int64)
    index = _build_index(vectors)

    def search(start: int) -> np.ndarray:
        queries = vectors[start : start + _BLOCK].astype(np.float32)
        similarities, neighbours = index.search(queries, min(_NEIGHBOURS, len(vectors)))
        query, place = np.nonzero((similarities >= _LEAST_SIMILARITY) & (neighbours >= 0))
        return _pairs(owners, positions, query + start, neighbours[query, place])

    found = map_threads(search, range(0, len(vectors), _BLOCK))
    return np.unique(np.concatenate(found), axis=0)


def _pairs(owners: np.ndarray, positions: np.ndarray, ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return (pair, 3) as `find_candidates` does, of landmarks that are close, but for those of one clip."""
    swapped = owners[ones] > owners[others]
    first, second = np.where(swapped, others, ones), np.where(swapped, ones, others)
    rows = np.stack([owners[first], owners[second], positions[first] - positions[second]], axis=1).astype(np.int64)
    distinct: np.ndarray = rows[rows[:, 0] != rows[:, 1]]
    return distinct


def _build_index(vectors: np.ndarray) -> Any:
    import faiss  # here: stages that read only the pairs start without it

    if len(vectors) <= _EXACT:
        index: Any = faiss.IndexFlatIP(VECTOR_SIZE)
    else:
        cells = len(vectors) // _CELL
        kind = faiss.ScalarQuantizer.QT_8bit
        quantizer = faiss.IndexFlatIP(VECTOR_SIZE)
        index = faiss.IndexIVFScalarQuantizer(quantizer, VECTOR_SIZE, cells, kind, faiss.METRIC_INNER_PRODUCT)
        index.nprobe, index.cp.seed = _PROBED, _SEED
        chosen = np.random.default_rng(_SEED).permutation(len(vectors))[: cells * _TRAINING]
        map_threads(lambda rows: index.train(vectors[rows].astype(np.float32)), [np.sort(chosen)])
    for start in range(0, len(vectors), _BLOCK):
        index.add(vectors[start : start + _BLOCK].astype(np.float32))
    return index
