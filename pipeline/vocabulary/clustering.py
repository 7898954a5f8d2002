"""One codebook from features, by k-means (Lloyd, 1982) as FAISS computes it. Only fitting imports FAISS.

Conventions: features (word, feature) float32; codes (code, feature) float32.
"""

from typing import Any

import numpy as np

from pipeline.errors import CorpusError
from pipeline.seeding import named_seed
from pipeline.vocabulary.settings import CommonParams


def cluster(
    params: CommonParams, features: np.ndarray, *stream: str | int, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return codes (code, feature), and the mean squared distance to them by iteration: (iteration,) float64.

    Starting points follow from the seed and `stream`. Raises CorpusError, which says `where`, when there are fewer distinct
    rows than words.
    """
    import faiss

    num_rows, width = features.shape
    distinct = count_distinct(features)
    if distinct < params.num_tokens:
        raise CorpusError(
            f"vocabularies.*.num_tokens: expected at most as many words as distinct frames, found {params.num_tokens} words "
            f"for {distinct} distinct among {num_rows} sampled frames or stacks of them ({where}); lower "
            "vocabularies.*.num_tokens, or raise vocabularies.*.sample_frames if it is what limits them"
        )
    best: tuple[np.ndarray, np.ndarray] | None = None
    # Not FAISS's own `nredo`: it strings the histories of several runs together, and runs that settle early are shorter.
    for restart in range(params.restarts):
        kmeans: Any = faiss.Kmeans(
            width,
            params.num_tokens,
            niter=params.iterations,
            seed=named_seed(params.seed, *stream, restart) % 2**31,
            # FAISS drops rows past 256 a centroid, and warns below 39 of them, unless told otherwise.
            min_points_per_centroid=1,
            max_points_per_centroid=-(-num_rows // params.num_tokens),
        )
        kmeans.train(features)
        # FAISS ends a run that has settled; it would have stayed where it is.
        history = np.pad(np.float64(kmeans.obj), (0, params.iterations - len(kmeans.obj)), mode="edge")
        if best is None or history[-1] < best[1][-1]:
            best = np.array(kmeans.centroids, dtype=np.float32), history
    assert best is not None  # restarts is positive
    return best[0], best[1] / num_rows


def count_distinct(features: np.ndarray) -> int:
    """Count the distinct rows of (word, feature) float32, by a 64-bit hash of their bits."""
    rows = np.ascontiguousarray(features + np.float32(0)).view(np.uint32).astype(np.uint64)  # -0 becomes 0
    multipliers = np.random.default_rng(0).integers(1, 2**63, rows.shape[1], dtype=np.uint64) * np.uint64(
        2
    ) + np.uint64(1)
    return len(np.unique((rows * multipliers).sum(axis=1, dtype=np.uint64)))
