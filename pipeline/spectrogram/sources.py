"""Encoded audio as decoders read it: files, and clips packed in tars and Parquet files; and what makes a clip bad.

What a decoder says of a file counts only if the file could be read, and has the content that the manifest names, before and
after decoding. Decoders take a failing read for the end of the file, so they read through an object that keeps the error.
"""

import contextlib
import hashlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

from typing_extensions import Buffer

from pipeline.artifacts.clips import ClipRecord
from pipeline.corpora.parquet_audio import SUFFIX as PARQUET
from pipeline.corpora.parquet_audio import read_row
from pipeline.errors import CorpusError

# A member is read into memory as a whole; ten seconds of the largest format take 60 MB.
_LARGEST_MEMBER = 1 << 30  # bytes

_FURTHEST = 1 << 62  # bytes; systems do not seek beyond 1 << 63

REMEMBERED = 1024  # files whose digest and structure are kept, since a long recording may have many clips


class BadClip(Exception):  # noqa: N818 - not a fault of the program but a property of a clip
    """A clip that cannot be used: `reason` is one word for counting, `message` is for people."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason, self.message = reason, message
        super().__init__(reason, message)

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


@dataclass(frozen=True, slots=True)
class PackedAudio:
    """Place of a clip's bytes in a file that holds many, a tar or a Parquet file, from the manifest."""

    name: str  # for messages
    offset: int  # bytes from the beginning of a tar; row of a Parquet file
    size: int  # bytes
    content: str  # digest of the bytes, to detect a file that was packed again

    @classmethod
    def of(cls, row: ClipRecord) -> Self | None:
        """Return the place of a manifest row, or None when its clip has a file of its own."""
        return cls(row["member"], row["offset"], row["size"], row["content"]) if row["member"] else None


class FileState(NamedTuple):
    """Evidence that a file is the same as before, from the system."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, file: io.BufferedReader) -> Self:
        """Return the state of an open file."""
        status = os.fstat(file.fileno())
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class Source:
    """Encoded audio as a decoder reads it: a file, or bytes in memory."""

    def __init__(self, raw: io.BufferedIOBase) -> None:
        self._raw = raw
        self.size = raw.seek(0, os.SEEK_END)  # bytes
        self.fault: OSError | None = None  # of a read
        raw.seek(0)

    @property
    def state(self) -> FileState | None:
        """State of the file; None of bytes in memory."""
        return FileState.of(self._raw) if isinstance(self._raw, io.BufferedReader) else None

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move, and return the new position; a damaged header may name any, and none that is no position is sought."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._raw.tell(), os.SEEK_END: self.size}[whence]
        return self._raw.seek(max(0, min(base + offset, _FURTHEST)))

    def tell(self) -> int:
        """Return the position."""
        return self._raw.tell()

    def readinto(self, buffer: Buffer) -> int:
        """Fill `buffer`, and return how many bytes there were; none after an error, which is kept."""
        try:
            read = self._raw.readinto(buffer)
        except OSError as error:
            self.fault, read = error, 0
        return read

    def read(self, size: int) -> bytes:
        """Return the next bytes, fewer at the end; none after an error, which is kept."""
        buffer = bytearray(size)
        return bytes(buffer[: self.readinto(buffer)])

    def read_at(self, offset: int, size: int) -> bytes:
        """Return bytes from `offset` on, and move behind them."""
        self.seek(offset)
        return self.read(size)


class Part:
    """Bytes of a source from `begin` to `end`, behind others, `head`, as a decoder reads them."""

    def __init__(self, source: Source, begin: int, end: int | None = None, *, head: bytes = b"") -> None:
        self._source, self._head, self._shift = source, head, begin - len(head)
        self.size = (source.size if end is None else end) - self._shift  # bytes
        self._position = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move, and return the new position."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def readinto(self, buffer: Buffer) -> int:
        """Fill `buffer`, and return how many bytes there were; none after an error, which the source keeps."""
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def read(self, size: int) -> bytes:
        """Return the next bytes, fewer at the end; none after an error, which the source keeps."""
        size = max(0, min(size, self.size - self._position))
        data = self._head[self._position : self._position + size]
        if len(data) < size:
            data += self._source.read_at(self._position + len(data) + self._shift, size - len(data))
        self._position += len(data)
        return data


@contextlib.contextmanager
def open_source(path: Path, where: Path, member: PackedAudio | None, content: str) -> Iterator[Source]:
    """Yield a clip's encoded bytes. An error of the block counts only if they could be read and stayed the same.

    `content` is the digest that a file must have, empty = any; a member has its own. `where` is for messages. Raises BadClip
    with the reasons missing, read_error and moved.
    """
    try:
        with path.open("rb") as file:
            before = FileState.of(file)
            source = Source(io.BytesIO(_read_packed(file, path, where, member)) if member else file)
            if content and not member and _digest(file, before) != content:
                raise _moved(where, "file")
            try:
                yield source
            finally:
                if source.fault:
                    raise source.fault
                if not member and FileState.of(file) != before:
                    raise _moved(where, "file")
    except (FileNotFoundError, NotADirectoryError):
        raise BadClip("missing", f"{path}: expected a file, found none") from None
    except IsADirectoryError:
        raise BadClip("missing", f"{path}: expected a file, found a folder") from None
    except OSError as error:
        found = error.strerror or str(error)
        advice = "see to the permissions, or to the disk, and run again"
        raise BadClip("read_error", f"{where}: expected a file that can be read, found: {found}; {advice}") from None


_digests: dict[FileState, str] = {}  # of this process; the oldest first


def _digest(file: io.BufferedReader, state: FileState) -> str:
    """Return the digest of a file, which is read once for all of its clips."""
    if state not in _digests:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:32]
        file.seek(0)
        if FileState.of(file) != state:
            return digest
        if len(_digests) == REMEMBERED:
            del _digests[next(iter(_digests))]
        _digests[state] = digest
    return _digests[state]


def _read_packed(file: io.BufferedReader, path: Path, where: Path, member: PackedAudio) -> bytes:
    """Return the bytes of a member, checked against the manifest's digest."""
    if member.size > _LARGEST_MEMBER:
        raise BadClip("too_long", f"{where}: expected at most {_LARGEST_MEMBER} bytes, found {member.size}")
    in_parquet = path.suffix == PARQUET
    encoded = _read_row(path, where, member) if in_parquet else _read_member(file, where, member)
    if hashlib.sha256(encoded).hexdigest()[: len(member.content)] != member.content:
        raise _moved(where, "Parquet file" if in_parquet else "tar")
    return encoded


def _read_member(tar: io.BufferedReader, where: Path, member: PackedAudio) -> bytes:
    tar.seek(member.offset)
    encoded = tar.read(member.size)
    if len(encoded) < member.size:
        found = f"{len(encoded)}: the tar was cut"
        raise BadClip("truncated", f"{where}: expected {member.size} bytes from byte {member.offset}, found {found}")
    return encoded


def _read_row(path: Path, where: Path, member: PackedAudio) -> bytes:
    try:
        encoded = read_row(path, member.offset)
    except CorpusError:  # it was a Parquet file with audio when it was listed
        encoded = None
    if encoded is None:
        raise _moved(where, "Parquet file")
    return encoded


def _moved(where: Path, what: str) -> BadClip:
    found = f"others: the {what} was changed; `dvc repro` lists it again"
    return BadClip("moved", f"{where}: expected the bytes that the manifest names, found {found}")
