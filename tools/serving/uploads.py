"""Receiving of uploads: streamed to a file of the server's own naming, and bounded in bytes and in time."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.types import Message, Receive

from tools.serving.limits import Limits, Refusal

FIELD = "file"  # of a form

_UNNAMED = "upload"
_LONGEST_NAME = 200  # characters of a client's file name that are repeated in an answer


class Upload(NamedTuple):
    """A received file."""

    path: Path  # on the server
    name: str  # that the client gave it: a label, never a path


@asynccontextmanager
async def receive_upload(request: Request, folder: Path, limits: Limits) -> AsyncIterator[Upload]:
    """Yield the sound in a request's body, which is a form with the field `file` or the file itself; then remove it.

    Raises Refusal: 400 (no file), 408 (too slow), 413 (too large), 415 (compressed), 507 (no room on the disk).
    """
    _check_headers(request, limits)
    descriptor, name = tempfile.mkstemp(dir=folder)
    path = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            label = await _save_in_time(Request(request.scope, _bounded(request.receive, limits)), file, limits)
        yield Upload(path, label)
    finally:
        path.unlink()


def _check_headers(request: Request, limits: Limits) -> None:
    """Refuse what the headers already tell, before any of the body is read."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise Refusal(415, "compressed", f"Content-Encoding: expected none, found {encoding}; send the file as it is")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limits.max_bytes:
        raise _too_large(limits)


async def _save_in_time(request: Request, file: BinaryIO, limits: Limits) -> str:
    try:
        async with asyncio.timeout(limits.upload_seconds):
            return await _save(request, file)
    except TimeoutError:
        message = f"upload: expected all of it within {limits.upload_seconds:g} s; send a smaller file"
        raise Refusal(408, "slow_upload", message) from None
    except OSError as error:
        message = f"upload: expected room for it on the server, found {error.strerror}; ask whoever runs the server"
        raise Refusal(507, "no_room", message) from None


async def _save(request: Request, file: BinaryIO) -> str:
    """Write the sound in a body to a file, and return its label."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        async for part in request.stream():
            file.write(part)
        if not file.tell():
            raise _no_file()
        return _UNNAMED
    async with request.form(max_files=1, max_fields=8) as form:
        sound = form.get(FIELD)
        if not isinstance(sound, UploadFile):
            raise _no_file()
        await asyncio.to_thread(shutil.copyfileobj, sound.file, file)
        return _label(sound.filename or _UNNAMED)


def _no_file() -> Refusal:
    message = f"upload: expected a form with the file in its field `{FIELD}`, or the file as the body, found neither"
    return Refusal(400, "no_file", message)


def _label(name: str) -> str:
    """Return the last part of a client's file name, without characters that no line of text has."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return "".join(letter for letter in last if letter.isprintable())[:_LONGEST_NAME] or _UNNAMED


def _bounded(receive: Receive, limits: Limits) -> Receive:
    """Return a body's messages, which end in Refusal (413) once they are more than the limit."""
    received = 0

    async def receive_bounded() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limits.max_bytes:
            raise _too_large(limits)
        return message

    return receive_bounded


def _too_large(limits: Limits) -> Refusal:
    megabytes = limits.max_bytes / 1e6
    return Refusal(413, "too_many_bytes", f"upload: expected at most {megabytes:g} MB; send FLAC, or a shorter sound")
