"""Measured programs: seconds, processor time, and memory over time of a program and all that it starts. For Linux."""

import contextlib
import resource
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

_INTERVAL = 1.0  # seconds between looks at the memory


class Sample(NamedTuple):
    """Memory at one time, of all processes together; pages that several of them share count once for each."""

    seconds: float  # since the start
    resident: int  # bytes
    anonymous: int  # bytes of it that belong to no file, which the system cannot drop


class Usage(NamedTuple):
    """What a program took."""

    seconds: float
    processor_seconds: float  # user and system time of all processes
    samples: list[Sample]

    @property
    def peak(self) -> int:
        """Return the largest resident memory that was seen, in bytes."""
        return max((sample.resident for sample in self.samples), default=0)

    def anonymous_at(self, part: float) -> int:
        """Return the anonymous memory after this part of the time, from 0 to 1, in bytes."""
        if not self.samples:
            return 0
        return self.samples[min(round(part * len(self.samples)), len(self.samples) - 1)].anonymous


def run_measured(command: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> Usage:
    """Run a program and return what it took. Raises RuntimeError with the end of its output where it fails."""
    before, started = _children_seconds(), time.perf_counter()
    samples: list[Sample] = []
    with subprocess.Popen(  # noqa: S603 - the benchmarks' own programs
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        ended = threading.Event()
        watcher = threading.Thread(target=_watch, args=(process.pid, started, ended, samples))
        watcher.start()
        output, _ = process.communicate()
        ended.set()
        watcher.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{output[-4000:]}")
    return Usage(time.perf_counter() - started, _children_seconds() - before, samples)


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _watch(pid: int, started: float, ended: threading.Event, samples: list[Sample]) -> None:
    while not ended.wait(_INTERVAL):
        found = [_memory(process) for process in _family(pid)]
        resident, anonymous = (sum(column) for column in zip(*found, strict=True)) if found else (0, 0)
        if resident:
            samples.append(Sample(time.perf_counter() - started, resident, anonymous))


def _family(pid: int) -> list[int]:
    """Return a process and its descendants."""
    children: list[int] = []
    with contextlib.suppress(OSError):  # it has ended meanwhile
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            children += map(int, path.read_text().split())
    return [pid, *(descendant for child in children for descendant in _family(child))]


def _memory(pid: int) -> tuple[int, int]:
    """Return resident and anonymous memory of a process in bytes; zeros of one that has ended."""
    try:
        lines = [line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    except OSError:
        return 0, 0
    fields = {line[0].rstrip(":"): line[1] for line in lines if len(line) > 1}
    return int(fields.get("VmRSS", 0)) * 1024, int(fields.get("RssAnon", 0)) * 1024
