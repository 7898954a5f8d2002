"""The part of the Dask executor that runs on a worker: look around first, then compute, one shard at a time.

A worker is a process that somebody started elsewhere, perhaps weeks ago. It must see the same files as the process that
sent the shard, and have the same code in memory; `Site` is what it compares with.
"""

import hashlib
import os
import pickle
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pipeline
from pipeline.errors import SonolexError
from pipeline.execution.memory import own_peak_memory
from pipeline.execution.threads import num_threads

_PACKAGE = Path(pipeline.__path__[0])
_SECONDS_TO_APPEAR = 5.0  # a file written on another machine may take a moment to be seen through a network

# Shards change the folder of the process, and are measured on one thread: those of a worker with more threads take turns.
_TURN = threading.Lock()


def source_digests() -> dict[str, str]:
    """Return the digest of every source file of Sonolex: path below the package -> 16 hex digits."""
    return {
        str(path.relative_to(_PACKAGE)): hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for path in sorted(_PACKAGE.rglob("*.py"))
    }


# Taken at import, against the rule that modules read nothing then: a worker outlives edits of the code, and what it has
# in memory can't be told from the files later.
_SOURCES = source_digests()


@dataclass(frozen=True)
class Site:
    """What the process that sends shards has before it, and a worker must have too."""

    folder: Path  # where relative paths begin
    paths: tuple[Path, ...]  # what exists there; the first is new, so that no other disk can have one of its name
    sources: tuple[tuple[str, str], ...]  # the code in use: source file below the package, its digest


@dataclass(frozen=True)
class Answer:
    """The result of one shard, and how large its worker has ever been."""

    result: Any
    memory: int  # bytes, resident


def differences(site: Site) -> list[str]:
    """Return what this process lacks to compute for `site`, one sentence each; none if all is there."""
    found = []
    deadline = time.monotonic() + _SECONDS_TO_APPEAR
    for path in site.paths:
        while not (site.folder / path).exists():
            if time.monotonic() > deadline:
                found.append(f"{site.folder / path}: expected to see it, found none: no file system is shared")
                break
            time.sleep(0.1)
    stale = [name for name, digest in site.sources if _SOURCES.get(name) != digest]
    if stale:
        found.append(
            f"expected the code of {site.folder}, found other code of {_PACKAGE} in memory ({', '.join(stale[:3])}"
            f"{', ...' if len(stale) > 3 else ''}): restart the worker, in this checkout"
        )
    return found


_agreed: set[Site] = set()


def compute_at(site: Site, job: bytes) -> Answer:
    """Compute a pickled (function, spec) in the folder of `site`. Raises SonolexError if this worker does not fit it."""
    with _TURN:
        if site not in _agreed:  # workers may join at any time
            found = differences(site)
            if found:
                raise SonolexError("\n  ".join([f"worker {os.uname().nodename}, process {os.getpid()}:", *found]))
            _agreed.add(site)
        os.chdir(site.folder)
        compute, spec = pickle.loads(job)  # noqa: S301 - from the process that this worker serves
        with num_threads(1):
            result = compute(spec)
    return Answer(result, own_peak_memory())
