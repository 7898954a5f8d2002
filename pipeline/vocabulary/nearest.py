"""Nearest codes of features by Euclidean distance, on the processor or a GPU.

How a product is rounded depends on how many rows it has and on which thread computes them, so no product takes rows of two
clips, and each is computed on one thread.

Conventions: features (token, feature) and codes (code, feature) float32.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from pipeline.execution.threads import map_threads, usable_threads
from pipeline.vocabulary.device import choose_device, nearest_on

# Features are scored in blocks whose scores (token, code) stay in the processor's cache between the matrix product and
# the argmax; blocks of 32 M scores halve the rate. Figures beside FAISS and the bare product: benchmarks/README.md.
_SCORES_PER_BLOCK = 1 << 19


def nearest_codes(features: np.ndarray, codes: np.ndarray, ends: Sequence[int] = (), *, count: int = 1) -> np.ndarray:
    """Return the `count` nearest codes of each row, nearest first: (count, token) uint16; the lowest id among equals.

    `ends` are the ends of the clips in `features`, where these are several.

    argmin over codes c of |x - c|^2 is argmax of x . c - |c|^2 / 2. The second term rides in the matrix product as one more
    feature: a pass over the scores costs more than it.
    """
    num_codes, width = codes.shape
    device = choose_device(len(features) * num_codes)
    if device is not None:
        return nearest_on(device, features, codes, count).astype(np.uint16)
    weights = np.empty((width + 1, num_codes), dtype=np.float32)
    weights[:-1] = codes.T
    weights[-1] = -0.5 * np.einsum("cf,cf->c", codes, codes, dtype=np.float64)
    block = max(64, _SCORES_PER_BLOCK // num_codes)
    blocks = [
        slice(start, min(start + block, stop))
        for first, stop in pairwise([0, *(ends or [len(features)])])
        for start in range(first, stop, block)
    ]
    nearest = np.empty((count, len(features)), dtype=np.int64)

    def search(own: list[slice]) -> None:
        inputs = np.ones((block, width + 1), dtype=np.float32)
        scores = np.empty((block, num_codes), dtype=np.float32)
        for rows in own:
            size = rows.stop - rows.start
            inputs[:size, :-1] = features[rows]
            np.matmul(inputs[:size], weights, out=scores[:size])
            for rank in range(count):
                found = nearest[rank, rows]
                scores[:size].argmax(axis=1, out=found)
                if rank + 1 < count:
                    scores[np.arange(size), found] = -np.inf

    threads = usable_threads()
    map_threads(search, [blocks[thread::threads] for thread in range(min(threads, len(blocks)))])
    return nearest.astype(np.uint16)
