"""Limits on the threads of numeric libraries, and a parallel map whose results do not depend on the number of cores.

BLAS and OpenMP split one product over their threads, and rounding depends on their number. Computations that determine an
artifact therefore use one thread of these libraries (`single_threaded`), and more cores by computing independent parts in
parallel and combining them in a fixed order (`map_threads`). NumPy, SciPy and FAISS release Python's lock while they
compute.

A limit applies to libraries that are already loaded: import them before entering it. `use_threads`, for a whole program,
also applies to libraries loaded later.
"""

import os
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from threadpoolctl import get_cached_controller, threadpool_limits

from pipeline.artifacts.settings import SETTINGS, Metadata

TRAINING_THREADS = "train.num_threads"  # the setting that results of training depend on
CORES_VARIABLE = "SONOLEX_CORES"  # a stage's share of cores where several run in parallel; see tools/repro.py
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")

_ITEMS_AHEAD = 2  # of `map_ahead`, beside those at work, so that no thread waits for the caller

T = TypeVar("T")
R = TypeVar("R")

_limit: ContextVar[int | None] = ContextVar("limit", default=None)  # of `num_threads`
_in_pool: ContextVar[bool] = ContextVar("in_pool", default=False)  # whether this is a thread of `map_threads`


def allowed_cores() -> int:
    """Return how many cores the system lets this process use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_cores() -> int:
    """Return the number of cores this process may use: its CPU affinity, or the share in SONOLEX_CORES."""
    cores = allowed_cores()
    share = os.environ.get(CORES_VARIABLE, "")
    return max(1, min(cores, int(share))) if share.isdigit() else cores


def usable_threads() -> int:
    """Return the number of threads to compute on: the limit of `num_threads`, OMP_NUM_THREADS, or one per core."""
    named = re.match(r"[1-9]\d*", os.environ.get("OMP_NUM_THREADS", ""))
    return _limit.get() or (int(named[0]) if named else num_cores())


def use_threads(count: int) -> None:
    """Set the number of threads of BLAS, OpenMP and torch, in this process and those that it starts."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(count)))  # for libraries that are loaded later
    threadpool_limits(count)
    if torch := sys.modules.get("torch"):  # else it reads the variables when it is loaded
        torch.set_num_threads(count)


def trained_threads(metadata: Metadata) -> int:
    """Return the number of threads that a stored model was trained on, from its metadata; 1 where it has none."""
    count = metadata.get(SETTINGS, {}).get(TRAINING_THREADS, 1)
    assert isinstance(count, int)
    return count


@contextmanager
def num_threads(count: int) -> Iterator[None]:
    """Limit the threads of BLAS, OpenMP and `map_threads` to `count` within a context."""
    token = _limit.set(count)
    try:
        with _limit_libraries(count):
            yield
    finally:
        _limit.reset(token)


@contextmanager
def single_threaded() -> Iterator[None]:
    """Limit BLAS and OpenMP to one thread within a context; the limit of `map_threads` stays."""
    with _limit_libraries(1):
        yield


@contextmanager
def single_threaded_torch() -> Iterator[None]:
    """Limit torch to one thread of what this thread computes, within a context.

    `single_threaded` limits torch's OpenMP, but not MKL, which is linked into torch and keeps the number that torch was
    last given. Within `single_threaded` that number is not known afterwards, and MKL keeps one thread until the next.
    """
    import torch

    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)


def map_threads(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Return `function(item)` of every item, in order, computed in parallel, each on one thread of BLAS and OpenMP.

    A nested map is a plain loop.
    """
    items = list(items)
    workers = min(usable_threads(), len(items))
    with single_threaded():
        if workers <= 1:
            return [function(item) for item in items]
        with ThreadPoolExecutor(workers, initializer=_enter_pool) as pool:
            return list(pool.map(function, items))


def map_ahead(function: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """Yield `function(item)` of every item, in order, computed on `workers` threads; items are taken a few at a time.

    What is at work or waits is bounded, so that items may be many; when the caller ends early, no further item is begun.
    """
    pool = ThreadPoolExecutor(workers)
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= workers + _ITEMS_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def divide_cores(workers: int) -> None:
    """Let `workers` threads of this program share the cores: each computes on its share of threads of BLAS and torch."""
    use_threads(max(1, min(usable_threads(), num_cores()) // workers))


def _enter_pool() -> None:
    get_cached_controller().limit(limits=1, user_api="openmp")  # OpenMP's limit is per thread
    _in_pool.set(True)
    _limit.set(1)


@contextmanager
def _limit_libraries(count: int) -> Iterator[None]:
    if _in_pool.get():  # BLAS's limit is per process: the one of the thread that opened the pool holds
        yield
    else:
        with get_cached_controller().limit(limits=count):
            yield
