"""Worker side of the Dask executor: check files and code once, then compute one shard at a time.

A worker is a long-running process, perhaps on another machine. It must see the same files as the process that sends shards,
and have the same code in memory; `Site` holds what it compares.
"""

import os
import pickle
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import SonolexError
from pipeline.execution.code import EVERY_KIND, FOLDER, Definition, Sources, snapshot, version_of
from pipeline.execution.memory import own_peak_memory
from pipeline.execution.threads import num_threads

_SECONDS_TO_APPEAR = 5.0  # until a file written on another machine appears in a network file system

# Shards change the folder of the process, and are measured on one thread: a worker with several threads runs one at a time.
_TURN = threading.Lock()


# Read at import, against the rule that modules read nothing then: a worker outlives edits of the code, after which the files
# no longer show what it has in memory.
_SOURCES = Sources(FOLDER, snapshot())


def worker_version(sources: Sources, root: Definition) -> str:
    """Return the version of the code that a worker runs for shards of a function."""
    return version_of(sources, [root, (__name__, compute_at.__name__)], EVERY_KIND)


@dataclass(frozen=True)
class Site:
    """Folder, files and code of the process that sends shards, which a worker must match."""

    folder: Path  # of relative paths
    paths: tuple[Path, ...]  # existing paths; the first is a new marker file, which no other disk can have
    root: Definition  # the function that computes a shard
    code: str  # version of the code behind it, see `pipeline/execution/code.py`


@dataclass(frozen=True)
class Answer:
    """Result of one shard, and its worker's peak memory."""

    result: Any
    memory: int  # bytes, resident


def differences(site: Site) -> list[str]:
    """Return the mismatches of this process with `site`, one sentence each; empty if it can compute for it."""
    found = []
    deadline = time.monotonic() + _SECONDS_TO_APPEAR
    for path in site.paths:
        while not (site.folder / path).exists():
            if time.monotonic() > deadline:
                found.append(f"{site.folder / path}: expected to see it, found none: no file system is shared")
                break
            time.sleep(0.1)
    version = worker_version(_SOURCES, site.root)
    if version != site.code:
        found.append(
            f"expected code {site.code} behind {'.'.join(site.root)}, as in {site.folder}, found {version} of {FOLDER} in "
            "memory: restart the worker, in this checkout"
        )
    return found


_agreed: set[Site] = set()


def compute_at(site: Site, job: bytes) -> Answer:
    """Compute a pickled (function, spec) in the folder of `site`. Raises SonolexError if this worker does not match it."""
    with _TURN:
        if site not in _agreed:  # new workers may join at any time
            found = differences(site)
            if found:
                raise SonolexError("\n  ".join([f"worker {os.uname().nodename}, process {os.getpid()}:", *found]))
            _agreed.add(site)
        os.chdir(site.folder)
        compute, spec = pickle.loads(job)  # noqa: S301 - from the process that this worker serves
        with num_threads(1):
            result = compute(spec)
    return Answer(result, own_peak_memory())
