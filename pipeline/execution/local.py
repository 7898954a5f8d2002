"""Run shards on this machine: one process a worker, each on one thread.

One thread a worker because clips are plentiful: threads inside a worker would fight the other workers for the same
cores. Processes are spawned, not forked: a fork copies locks that a thread of zarr, tensorstore or OpenMP may hold, and
hangs.
"""

import contextlib
import logging
import multiprocessing
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, NonNegativeInt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.errors import SonolexError
from pipeline.params import Params

log = logging.getLogger(__name__)

S = TypeVar("S")
R = TypeVar("R")

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_LOST_POOLS = 3  # so many times may workers be killed before the stage gives up
_SECONDS_BETWEEN_LINES = 10.0  # of progress, away from a terminal


class ExecutionParams(Params):
    """How shards are run. Tracked by no stage: it changes the time taken, never the result."""

    executor: Literal["local"]
    workers: NonNegativeInt  # processes; 0 = one for each core that this process may use, fewer for little work
    memo: Annotated[Path, Field(strict=False)]  # folder, relative to the project: what runs remember for each other

    def num_workers(self, num_shards: int, worthwhile: int) -> int:
        """Return how many workers to start, at least 1; `worthwhile` bounds the choice where it is left to the program."""
        available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, min(self.workers or min(available, worthwhile), num_shards))


def run_shards(
    compute: Callable[[S], R],
    specs: Iterable[S],
    *,
    workers: int,
    label: str,
    num_clips: Callable[[S], int] = lambda _: 1,
) -> Iterator[R]:
    """Yield `compute(spec)` for every spec, in the order in which they finish.

    `compute` must be importable and its spec and result picklable; with `workers` = 1 it runs in this process. Progress
    is counted in clips, `num_clips` a spec. An exception of `compute` ends the run. When a worker is killed, the shards
    in flight are tried again on half as many workers (too little memory is the likely cause), so `compute` must bear
    being repeated; SonolexError after three times.
    """
    specs = list(specs)
    pairs = _in_process(compute, specs) if workers == 1 else _in_pool(compute, specs, workers, label)
    with contextlib.closing(pairs), _progress(label, sum(map(num_clips, specs))) as advance:
        for spec, result in pairs:
            advance(num_clips(spec))
            yield result


def _in_process(compute: Callable[[S], R], specs: Sequence[S]) -> Generator[tuple[S, R], None, None]:
    for spec in specs:
        yield spec, compute(spec)


def _in_pool(
    compute: Callable[[S], R], specs: Iterable[S], workers: int, label: str
) -> Generator[tuple[S, R], None, None]:
    waiting = deque(specs)
    lost = 0
    while waiting:
        running: dict[Future[R], S] = {}
        with _one_thread_each(), ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            try:
                while waiting or running:
                    # A few shards ahead of the workers, not all: a corpus may have thousands.
                    while waiting and len(running) < 2 * workers:
                        running[pool.submit(compute, waiting[0])] = waiting[0]
                        waiting.popleft()
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        result = future.result()
                        yield running.pop(future), result
            except BrokenProcessPool:
                lost += 1
                if lost == _LOST_POOLS:
                    raise SonolexError(
                        f"{label}: expected workers to finish their shards, found one killed {lost} times, the last "
                        f"with {len(running)} shards in flight (out of memory?); lower execution.workers"
                    ) from None
                waiting.extendleft(reversed(running.values()))
                workers = max(1, workers // 2)
                log.warning("%s: a worker was killed; trying %d shards again, workers %d", label, len(running), workers)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Set the thread variables that spawned workers inherit; this process has read its own already."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with the number of clips just done: a bar on a terminal, log lines elsewhere."""
    started = time.perf_counter()
    done = 0

    def rate() -> float:
        return done / max(time.perf_counter() - started, 1e-9)

    if sys.stderr.isatty():
        columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]:.0f} clips/s"))
        with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(label, total=total, rate=0.0)

            def advance_bar(num_clips: int) -> None:
                nonlocal done
                done += num_clips
                bar.update(task, completed=done, rate=rate())

            yield advance_bar
        return

    next_line = started + _SECONDS_BETWEEN_LINES

    def advance_log(num_clips: int) -> None:
        nonlocal done, next_line
        done += num_clips
        if time.perf_counter() >= next_line:
            log.info("%s: %d of %d clips, %.0f clips/s", label, done, total, rate())
            next_line = time.perf_counter() + _SECONDS_BETWEEN_LINES

    yield advance_log
