"""Executors of shards: processes of this machine, or workers of a Dask cluster, as the params say.

A shard is computed by one importable, idempotent function that writes its output itself: only its small spec and its smaller
result are sent between processes.
"""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Literal, TypeVar

from pydantic import NonNegativeInt, ValidationInfo, field_validator

from pipeline.execution.dask_cluster import run_on_cluster
from pipeline.execution.local import run_here, run_in_processes
from pipeline.execution.progress import progress
from pipeline.execution.stage import StageReport
from pipeline.execution.threads import num_cores
from pipeline.execution.worker_failures import WorkerFailures
from pipeline.params import Params, SharedFolder

S = TypeVar("S")
R = TypeVar("R")


class ExecutionParams(Params):
    """The section `execution`: how shards are run. No stage depends on it, since it never changes a result."""

    executor: Literal["local", "dask"]
    workers: NonNegativeInt  # local processes; 0 = one for each core that this process may use, fewer for little work
    scheduler: str  # address of a Dask scheduler, such as tcp://host:8786; empty with executor local
    memo: SharedFolder  # cache of finished shards, shared by all runs and workspaces of the project

    @field_validator("scheduler")
    @classmethod
    def _check(cls, scheduler: str, others: ValidationInfo) -> str:
        executor = others.data.get("executor")
        if executor == "dask" and not re.fullmatch(r"[a-z]+://\S+:\d+", scheduler):
            raise ValueError("expected the address of a Dask scheduler, such as tcp://host:8786, with executor dask")
        if executor == "local" and scheduler:
            raise ValueError("expected an empty string with executor local")
        return scheduler


def run_shards(
    compute: Callable[[S], R],
    specs: Iterable[S],
    *,
    execution: ExecutionParams,
    report: StageReport,
    label: str,
    total_clips: int,
    num_clips: Callable[[S], int],
    worthwhile: int,
) -> Iterator[R]:
    """Yield `compute(spec)` for every spec, in the order of completion, and record in `report` where they were computed.

    `specs` is consumed lazily, a few ahead of each worker. Progress is counted in clips, `num_clips(spec)` of `total_clips`;
    `worthwhile` bounds the number of local workers where the params leave it open. A single worker is this process itself.
    Shards whose worker is lost are run again; a SonolexError names those that repeatedly lose their worker, after all others
    are done. An exception of `compute` ends the run, after the results finished by then are yielded.
    """
    waiting = iter(specs)
    report.executor = " ".join(filter(None, (execution.executor, execution.scheduler)))
    if execution.executor == "dask":
        failures = WorkerFailures(label, "give workers more memory, or make shards smaller; their logs may say more")
        pairs = run_on_cluster(compute, waiting, execution.scheduler, report, failures)
    else:
        failures = WorkerFailures(label, "free memory, make shards smaller, or repair the files that they read")
        wanted = execution.workers or max(1, min(num_cores(), worthwhile))
        first = list(islice(waiting, wanted))  # at most one worker per shard
        waiting = chain(first, waiting)
        report.workers = max(1, len(first))
        if report.workers == 1:
            pairs = run_here(compute, waiting, failures)
        else:
            pairs = run_in_processes(compute, waiting, report.workers, failures, report)
    try:
        with contextlib.closing(pairs), progress(label, total_clips) as advance:
            for spec, result in pairs:
                advance(num_clips(spec))
                yield result
    finally:
        report.incidents += failures.incidents()
    if failures.given_up:
        raise failures.error()
