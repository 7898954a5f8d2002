"""Limits on the threads of numeric libraries, and a map over threads that gives the same on any number of cores.

BLAS and OpenMP spread one product over their threads, and round otherwise with another number of them. What decides the
numbers of an artifact therefore computes on one thread of these libraries (`single_threaded`), and uses more cores by
computing independent parts side by side and combining them in a fixed order (`map_threads`). NumPy, SciPy and FAISS release
Python's lock while they compute.

A limit holds for libraries that are loaded by then: import what computes before entering it. `use_threads`, for a whole
program, reaches those that are loaded later too.
"""

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from threadpoolctl import get_cached_controller, threadpool_limits

from pipeline.artifacts.settings import SETTINGS

TRAINING_THREADS = "train.num_threads"  # the setting that results of training follow from
CORES_VARIABLE = "SONOLEX_CORES"  # a stage's share where several run side by side; see tools/repro.py
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")

T = TypeVar("T")
R = TypeVar("R")

_limit: ContextVar[int | None] = ContextVar("limit", default=None)  # of `num_threads`
_in_pool: ContextVar[bool] = ContextVar("in_pool", default=False)  # this is one of the threads of `map_threads`


def num_cores() -> int:
    """Return how many cores this process may use: all that it is allowed, or its share, where SONOLEX_CORES gives one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = os.environ.get(CORES_VARIABLE, "")
    return max(1, min(cores, int(share))) if share.isdigit() else cores


def usable_threads() -> int:
    """Return on how many threads this process may compute: as in `num_threads`, or OMP_NUM_THREADS, or one for each core."""
    named = re.match(r"[1-9]\d*", os.environ.get("OMP_NUM_THREADS", ""))
    return _limit.get() or (int(named[0]) if named else num_cores())


def use_threads(count: int) -> None:
    """Compute on `count` threads of BLAS, OpenMP and torch from now on, in this process and those that it starts."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(count)))  # for libraries that are loaded later
    threadpool_limits(count)
    if torch := sys.modules.get("torch"):  # else it reads the variables; classical models do without it
        torch.set_num_threads(count)


def trained_threads(metadata: Mapping[str, Any]) -> int:
    """Return how many threads a stored model was trained on, by its metadata; 1 where it does not say."""
    return int(metadata.get(SETTINGS, {}).get(TRAINING_THREADS, 1))


@contextmanager
def num_threads(count: int) -> Iterator[None]:
    """Compute on at most `count` threads: those of BLAS and OpenMP, or those of `map_threads`."""
    token = _limit.set(count)
    try:
        with _limit_libraries(count):
            yield
    finally:
        _limit.reset(token)


@contextmanager
def single_threaded() -> Iterator[None]:
    """Compute on one thread of BLAS and OpenMP, while `map_threads` may use as many as before."""
    with _limit_libraries(1):
        yield


def map_threads(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Return `function(item)` of every item, in order, computed side by side, each on one thread of BLAS and OpenMP.

    Within `function` another map is a plain loop.
    """
    items = list(items)
    workers = min(usable_threads(), len(items))
    with single_threaded():
        if workers <= 1:
            return [function(item) for item in items]
        with ThreadPoolExecutor(workers, initializer=_enter_pool) as pool:
            return list(pool.map(function, items))


def _enter_pool() -> None:
    get_cached_controller().limit(limits=1, user_api="openmp")  # each thread of a process has a limit of its own
    _in_pool.set(True)
    _limit.set(1)


@contextmanager
def _limit_libraries(count: int) -> Iterator[None]:
    if _in_pool.get():  # limits of BLAS are the whole process's: those of the thread that opened the pool hold
        yield
    else:
        with get_cached_controller().limit(limits=count):
            yield
