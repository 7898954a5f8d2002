"""Shards for tests of the executors. Workers import this module, so it imports little."""

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy  # noqa: F401 - for its BLAS
from threadpoolctl import threadpool_info

from pipeline.errors import ArtifactError, SonolexError


def square(number: int) -> int:
    return number * number


def refuse(number: int) -> int:
    raise SonolexError(f"no {number}")


def threads(_: int) -> str | None:
    return os.environ.get("OMP_NUM_THREADS")


def library_threads(_: int) -> list[int]:
    """Return on how many threads BLAS and OpenMP would compute."""
    return sorted({library["num_threads"] for library in threadpool_info()})


def die_once(flag: str) -> int:
    """Kill this worker, unless the flag says that one has died already."""
    path = Path(flag)
    if path.suffix == ".flag" and not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 1


def die_at_7(number: int) -> int:
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def run_out_of_memory_at_7(number: int) -> int:
    if number == 7:
        raise MemoryError
    return number


def leave(number: int) -> int:
    os._exit(3)


def refuse_at_0(number: int) -> int:
    """Refuse one shard at once, while the others are being computed."""
    if number == 0:
        raise SonolexError("no 0")
    time.sleep(0.5)
    return number


def find_an_artifact_damaged(_: int) -> int:
    raise ArtifactError(Path("data/spectrogram"), "shard", expected="all", found="half", stage="spectrogram")


def where(_: int) -> tuple[str, int]:
    return str(Path.cwd()), os.getpid()


def nap(_: int) -> tuple[float, float]:
    start = time.time()
    time.sleep(0.2)
    return start, time.time()


def drawn_for_ten_results(run: Callable[[Iterable[int]], Iterator[int]]) -> int:
    """Return how many shards an executor draws from an endless list until it has yielded ten results and is closed."""
    drawn = 0

    def endless() -> Iterator[int]:
        nonlocal drawn
        while True:
            drawn += 1
            yield drawn

    results = run(endless())
    for _ in range(10):
        next(results)
    results.close()  # type: ignore[attr-defined]
    return drawn
