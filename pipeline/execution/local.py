"""Local executor: runs shards on worker processes of this machine, each on one thread.

One thread per worker, because threads inside workers would compete for the same cores and change rounding. Processes are
spawned, not forked: a fork copies locks that a thread of zarr, tensorstore or OpenMP may hold, and can deadlock.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.process import BaseProcess
from typing import Generic, TypeVar

from pipeline.execution.memory import own_peak_memory
from pipeline.execution.stage import StageReport
from pipeline.execution.threads import THREAD_VARIABLES, num_threads
from pipeline.execution.worker_failures import WorkerFailures

log = logging.getLogger(__name__)

S = TypeVar("S")
R = TypeVar("R")

_AHEAD = 2  # shards in flight per worker: one computed and one waiting, so that no worker waits for this process


def run_here(
    compute: Callable[[S], R], specs: Iterator[S], failures: WorkerFailures
) -> Generator[tuple[S, R], None, None]:
    """Yield every spec with its result, computed in this process; a shard that raises MemoryError is given up.

    Computes on one thread, as a worker does, so that results are identical to the bit.
    """
    for spec in specs:
        try:
            with num_threads(1):
                result = compute(spec)
        except MemoryError:
            failures.causes.add("MemoryError")
            failures.give_up(spec)
        else:
            yield spec, result


def run_in_processes(
    compute: Callable[[S], R], specs: Iterator[S], workers: int, failures: WorkerFailures, report: StageReport
) -> Generator[tuple[S, R], None, None]:
    """Yield every spec with its result, computed by `workers` processes, in the order in which they finish.

    When a worker is killed, its pool is lost, and the shards in flight are tried again, each time on half as many workers
    (too little memory is the likely cause). A shard that is lost twice while it runs alone is given up, see
    `WorkerFailures`, and the others continue with all workers. An exception of `compute` is raised after the started shards
    are done and yielded.
    """
    most = workers
    again: deque[S] = deque()
    accused: list[S] = []  # the shard that was lost while running alone, until its second attempt
    while True:
        pool = _Pool(compute, specs, again, workers, report)
        yield from pool.results()
        if pool.failure is not None:
            raise pool.failure
        if not pool.lost:
            return
        failures.workers += 1
        failures.causes |= pool.causes()
        if pool.alone and accused and accused[0] is pool.lost[0]:
            failures.give_up(accused.pop())
            workers = most
            continue
        accused = pool.lost[:1] if pool.alone else []
        workers = workers if pool.alone else max(1, workers // 2)
        failures.shards += len(pool.lost)
        again.extendleft(reversed(pool.lost))
        found = ", ".join(sorted(pool.causes())) or "unknown cause"
        log.warning(
            "%s: a worker was killed (%s); trying %d shards again, workers %d",
            *(failures.label, found, len(pool.lost), workers),
        )


class _Pool(Generic[S, R]):
    """Worker processes until the specs are used up, one of the processes is lost, or `compute` raises."""

    def __init__(
        self, compute: Callable[[S], R], specs: Iterator[S], again: deque[S], workers: int, report: StageReport
    ) -> None:
        self.compute, self.specs, self.again, self.workers, self.report = compute, specs, again, workers, report
        self.lost: list[S] = []
        self.alone = False  # the lost shard was the only one in flight
        self.failure: BaseException | None = None
        self._running: dict[Future[tuple[R, int]], S] = {}
        self._careful = bool(again)  # shards that are tried again run without others
        self._others = set(multiprocessing.active_children())
        self._children: set[BaseProcess] = set()
        self._out_of_memory = False

    def results(self) -> Generator[tuple[S, R], None, None]:
        """Yield specs with their results; afterwards `lost` and `failure` say why the run ended."""
        pool = ProcessPoolExecutor(self.workers, multiprocessing.get_context("spawn"))
        try:
            while True:
                if not self.lost and self.failure is None:
                    self._fill(pool)
                if not self._running:
                    return
                in_flight = len(self._running)
                for future in wait(self._running, return_when=FIRST_COMPLETED).done:
                    spec, error = self._running.pop(future), future.exception()
                    if error is None:
                        result, memory = future.result()
                        self.report.worker_memory = max(self.report.worker_memory, memory)
                        yield spec, result
                    else:
                        self._note(spec, error, alone=in_flight == 1)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def causes(self) -> set[str]:
        """Return how the lost worker ended, a signal or an exit status; to be called after `results`."""
        codes = {child.exitcode for child in self._children}
        by_itself = {code for code in codes if code and code != -signal.SIGTERM}  # the pool ends the others by SIGTERM
        causes = {signal.Signals(-code).name if code < 0 else f"exit status {code}" for code in by_itself}
        return causes | {"MemoryError"} if self._out_of_memory else causes

    def _fill(self, pool: ProcessPoolExecutor) -> None:
        self._careful = bool(self.again) or (self._careful and bool(self._running))
        ahead = self.workers if self._careful else _AHEAD * self.workers
        with _one_thread_each():  # submitting may start a worker
            for spec in islice(self._waiting(), ahead - len(self._running)):
                try:
                    self._running[pool.submit(_measured, self.compute, spec)] = spec
                except BrokenProcessPool:
                    self.lost.append(spec)
                    break
        self._children.update(set(multiprocessing.active_children()) - self._others)

    def _waiting(self) -> Iterator[S]:
        if self._careful:
            while self.again:
                yield self.again.popleft()
        else:
            yield from self.specs

    def _note(self, spec: S, error: BaseException, *, alone: bool) -> None:
        """Record a shard without a result; shards that have not begun are cancelled if the run is to end."""
        killed = isinstance(error, BrokenProcessPool) and error.__cause__ is None  # else: pickling failed
        if killed or isinstance(error, MemoryError):
            self.lost.append(spec)
            self.alone = alone
            self._out_of_memory |= not killed
        elif self.failure is None:
            self.failure = error
            for future in list(self._running):
                if future.cancel():
                    del self._running[future]


def _measured(compute: Callable[[S], R], spec: S) -> tuple[R, int]:
    """Return the result, and this worker's peak memory so far, in bytes."""
    return compute(spec), own_peak_memory()


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Set the thread variables that spawned workers inherit, without effect on this process, which has read them."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
