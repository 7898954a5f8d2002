"""Codebooks from features, by k-means (Lloyd, 1982) as FAISS computes it. Only fitting imports FAISS.

FAISS rounds differently on another number of threads, and near ties then fall the other way. Here every run is computed on
one, and several runs, of other codebooks or from other starting points, side by side.

Conventions: features (token, feature) float32; codes (code, feature) float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from pipeline.errors import CorpusError
from pipeline.execution.threads import map_threads
from pipeline.seeding import named_seed
from pipeline.vocabulary.settings import ClusteringParams, KindParams


@dataclass(frozen=True)
class Task:
    """Data and random stream of one codebook's fit."""

    features: np.ndarray  # (token, feature); a slice of columns is copied when its turn comes
    stream: tuple[str, int]  # with the seed, what the starting points follow from
    where: str  # for messages


def cluster_one(params: ClusteringParams, task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Return one codebook: see `cluster_each`."""
    (found,) = cluster_each(params, [task])
    return found


def cluster_each(params: ClusteringParams, tasks: Sequence[Task]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return each task's codes (code, feature), and the mean squared distance to them by iteration: (iteration,) float64.

    Raises CorpusError, which says where, when there are fewer distinct rows than tokens.
    """
    import faiss  # noqa: F401 - before its threads are limited

    map_threads(lambda task: require_distinct(params, task), tasks)
    runs = list(product(tasks, range(params.restarts)))
    found = map_threads(lambda run: _run_kmeans(params, *run), runs)
    of_tasks = (found[first : first + params.restarts] for first in range(0, len(found), params.restarts))
    return [min(results, key=lambda result: result[1][-1]) for results in of_tasks]  # the first of equals


def _run_kmeans(params: ClusteringParams, task: Task, restart: int) -> tuple[np.ndarray, np.ndarray]:
    """Return codes and objective of one run. Not FAISS's own `nredo`: it strings the histories of several together."""
    import faiss

    num_rows, width = task.features.shape
    kmeans: Any = faiss.Kmeans(
        width,
        params.num_tokens,
        niter=params.iterations,
        seed=named_seed(params.seed, *task.stream, restart) % 2**31,
        # FAISS drops rows past 256 a centroid, and warns below 39 of them, unless told otherwise.
        min_points_per_centroid=1,
        max_points_per_centroid=-(-num_rows // params.num_tokens),
    )
    kmeans.train(np.ascontiguousarray(task.features))
    # FAISS ends a run that has settled; it would have stayed where it is.
    history = np.pad(np.float64(kmeans.obj), (0, params.iterations - len(kmeans.obj)), mode="edge")
    return np.array(kmeans.centroids, dtype=np.float32), history / num_rows


def require_distinct(params: KindParams, task: Task) -> None:
    """Raise CorpusError, which says where, when there are fewer distinct rows than tokens."""
    distinct = count_distinct(task.features)
    if distinct < params.num_tokens:
        raise CorpusError(
            f"vocabularies.*.num_tokens: expected at most as many tokens as distinct frames, found {params.num_tokens} "
            f"for {distinct} distinct among {len(task.features)} sampled frames or stacks of them ({task.where}); lower "
            "vocabularies.*.num_tokens, or raise vocabularies.*.sample_frames if it is what limits them"
        )


def count_distinct(features: np.ndarray) -> int:
    """Count the distinct rows of (token, feature) float32, by a 64-bit hash of their bits."""
    rows = np.ascontiguousarray(features + np.float32(0)).view(np.uint32).astype(np.uint64)  # -0 becomes 0
    multipliers = np.random.default_rng(0).integers(1, 2**63, rows.shape[1], dtype=np.uint64) * np.uint64(
        2
    ) + np.uint64(1)
    return len(np.unique((rows * multipliers).sum(axis=1, dtype=np.uint64)))
