"""Faults of storage: a read that fails, and no permission, also where the tests run as root."""

import contextlib
import ctypes
import errno
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_VERSION = 0x20080522  # of the kernel's interface, _LINUX_CAPABILITY_VERSION_3
_DAC = 0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH


@contextlib.contextmanager
def forbidden(path: Path) -> Iterator[None]:
    """Take all permissions from a file or folder, and give them back."""
    mode = path.stat().st_mode
    path.chmod(0)
    try:
        with _without_privilege():
            yield
    finally:
        path.chmod(mode)


@contextlib.contextmanager
def failing(path: Path, monkeypatch: pytest.MonkeyPatch, *, after: int = 1000) -> Iterator[None]:
    """Let reads of a file fail with EIO beyond so many bytes."""

    class Failing(io.BufferedReader):
        def readinto(self, buffer: Any) -> int:
            if self.tell() + len(memoryview(buffer)) > after:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
            return super().readinto(buffer)

        def read(self, size: int | None = -1, /) -> bytes:
            if size is None or size < 0 or self.tell() + size > after:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
            return super().read(size)

    opened = Path.open

    def open_failing(self: Path, *arguments: Any, **options: Any) -> Any:
        return Failing(io.FileIO(self)) if self == path else opened(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_failing)
        yield


@contextlib.contextmanager
def _without_privilege() -> Iterator[None]:
    """Drop root's privilege to ignore permissions, in this thread and those that it starts; no other user has it."""
    if os.geteuid():
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (
        (ctypes.c_uint32 * 2)(_VERSION, 0),
        (ctypes.c_uint32 * 6)(),
    )  # effective, permitted, inheritable, twice
    _require(libc.capget(header, sets))
    before = sets[0]
    sets[0] &= ~_DAC
    _require(libc.capset(header, sets))
    try:
        yield
    finally:
        sets[0] = before
        _require(libc.capset(header, sets))


def _require(status: int) -> None:
    if status:
        raise OSError(ctypes.get_errno(), "capabilities cannot be changed")
