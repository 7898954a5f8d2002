"""Writing so that a reader never meets half a file: temporary name first, then rename."""

import contextlib
import hashlib
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil

PARTIAL_SUFFIX = ".partial"
_HOST = re.sub(r"[^A-Za-z0-9]+", "-", socket.gethostname())  # two machines may share a folder


def partial_name(path: Path) -> Path:
    """Return a temporary name beside `path` that no other process uses, and that tells whose it is."""
    return path.with_name(f".{path.name}.{_HOST}-{os.getpid()}.{uuid.uuid4().hex[:8]}{PARTIAL_SUFFIX}")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes the place of `path`, on an error it is removed.

    Works for a file and for a folder (a Zarr store). The name starts with a dot, so that no stray one is mistaken for
    an artifact.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_name(path)
    try:
        yield partial
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        os.replace(partial, path)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        partial.unlink(missing_ok=True)


def clear_partials(path: Path) -> None:
    """Remove what killed runs left beside `path`: temporary names of processes of this machine that are no more."""
    for partial in path.parent.glob(f".{path.name}.*{PARTIAL_SUFFIX}"):
        host, _, process = partial.name.removeprefix(f".{path.name}.").split(".")[0].rpartition("-")
        if host == _HOST and process.isdecimal() and not psutil.pid_exists(int(process)):
            if partial.is_dir():
                shutil.rmtree(partial, ignore_errors=True)
            else:
                partial.unlink(missing_ok=True)


def file_digest(path: Path) -> str:
    """Return the first 32 hex digits of a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]
