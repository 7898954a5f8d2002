"""Atomic writes (temporary name, then rename), locks and digests of files."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

PARTIAL_SUFFIX = ".partial"
_HOST = re.sub(r"[^A-Za-z0-9]+", "-", socket.gethostname())  # two machines may share a folder


def partial_name(path: Path) -> Path:
    """Return a temporary name beside `path` that holds the host and process id, so that no other process uses it."""
    return path.with_name(f".{path.name}.{_HOST}-{os.getpid()}.{uuid.uuid4().hex[:8]}{PARTIAL_SUFFIX}")


# Errors that are the storage's fault, whichever library reports them; they say nothing about the content of a file.
STORAGE_FAULTS = {
    errno.ENOSPC: "expected room on the disk, found it full",
    errno.EDQUOT: "expected room on the disk, found the quota used up",
    errno.EFBIG: "expected room for the file, found that it would exceed the largest allowed size",
    errno.EROFS: "expected a disk that can be written, found it mounted read-only",
    errno.EIO: "expected a disk that works, found an input/output error",
    errno.ESTALE: "expected a file server that knows the file, found that it does not (stale file handle)",
    errno.EACCES: "expected permission to read and write it, found none (permission denied)",
    errno.EPERM: "expected permission to read and write it, found none (operation not permitted)",
}

_SWAPS = 100  # attempts; one fails only where another writer finishes at the same instant


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes the place of `path`, on an error it is removed.

    Works for a file and for a folder (a Zarr store). The name starts with a dot, so that a leftover is not mistaken for an
    artifact. Two writers of one path may overlap: the result is whole, and that of the last to finish. A disk that fails
    raises an OSError with one of STORAGE_FAULTS and `path` as its filename, even where a library raised another exception;
    one that names another file, which was read, is raised as it is.
    """
    partial = partial_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        _swap(partial, path)
    except Exception as error:
        number = storage_fault(error)
        if number is None or _names_another(error, partial):
            raise
        raise OSError(number, os.strerror(number), str(path)) from error
    finally:
        _discard(partial)


def storage_fault(error: BaseException) -> int | None:
    """Return which of STORAGE_FAULTS caused an exception, or None.

    Python, zarr and pyarrow set `errno`; safetensors has the number in its message, and SQLite has its own error codes.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None and getattr(error, "sqlite_errorname", "") == "SQLITE_FULL":
        number = errno.ENOSPC
    if number is None and (match := re.search(r"\(os error (\d+)\)", str(error))):
        number = int(match[1])
    return number if number in STORAGE_FAULTS else None


def _names_another(error: Exception, path: Path) -> bool:
    """Return whether an error is about files that are neither `path` nor below it."""
    names = [error.filename, error.filename2] if isinstance(error, OSError) else []
    named = [Path(os.fsdecode(name)) for name in names if isinstance(name, str | bytes)]
    return bool(named) and not any(name.is_relative_to(path) for name in named)


def clear_partials(path: Path) -> None:
    """Remove temporary files beside `path` that belong to processes of this machine that have ended."""
    for partial in path.parent.glob(f".{path.name}.*{PARTIAL_SUFFIX}"):
        host, _, process = partial.name.removeprefix(f".{path.name}.").split(".")[0].rpartition("-")
        if host == _HOST and process.isdecimal() and not psutil.pid_exists(int(process)):
            _discard(partial)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the exclusive lock of a folder, which is created if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed, by the end of the process at the latest
        yield


def parse_json(text: str | bytes) -> Any:  # whatever the text says
    """Return the value of a JSON text. Raises ValueError for what is none, is no UTF-8, or is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("lists or objects nested too deeply") from None


def file_digest(path: Path) -> str:
    """Return the first 32 hex digits of a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def distrust(path: Path) -> None:
    """Set the times of a file, or of all files below a folder, to now, because the content was found damaged.

    DVC and the memo store take size and time as evidence that a file is unchanged; after this they read it again, also under
    the names of its other hard links. A file of another user stays as it is.
    """
    for file in path.rglob("*") if path.is_dir() else [path]:
        with contextlib.suppress(OSError):
            os.utime(file)


def _swap(partial: Path, path: Path) -> None:
    """Replace `path` by `partial`. No system call replaces a non-empty folder, so the old one is first moved aside."""
    for attempt in range(_SWAPS):
        try:
            os.replace(partial, path)
        except OSError as error:
            in_the_way = error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.EISDIR, errno.ENOTDIR)
            if not in_the_way or attempt == _SWAPS - 1:
                raise
        else:
            return
        aside = partial_name(path)
        with contextlib.suppress(FileNotFoundError):  # another writer has just moved it
            path.rename(aside)
        _discard(aside)


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
