"""Index of tar files: place and digest of every member, so that members are read in place.

Indexes are cached with the digests of plain files, by path, size and modification time: an unchanged tar is not opened
again. Of a tar that grew (a continued download, appended members) only the new members are read, provided that all headers
before them are unchanged: a header holds its member's name, size and time, the same evidence as for a plain file. Warnings
name the members that `tar_walk.py` refuses, and the place where a tar was truncated.
"""

import hashlib
import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.corpora.content import STORE_PATH, checksum, settled, with_store
from pipeline.corpora.tar_walk import Member, Walk
from pipeline.errors import CorpusError

log = logging.getLogger(__name__)

_THREADS = 4  # tars read at a time
_PIECE = 1 << 20  # bytes read at a time
_SECONDS_BETWEEN_SAVES = 30.0  # of reading, which a killed run loses
_NAMED = 10  # refused members that a warning names; the rest are counted

_ENTRIES = pa.schema(
    {"name": pa.string(), "offset": pa.int64(), "size": pa.int64(), "refused": pa.string(), "digest": pa.string()}
)
_TABLE = """
CREATE TABLE IF NOT EXISTS tar_files
    (path TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, heads TEXT NOT NULL, damage TEXT NOT NULL,
     entries BLOB NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID
"""


@dataclass(frozen=True)
class TarIndex:
    """Index of one tar: members that may be read, and those refused."""

    members: pa.Table  # name, offset and size in bytes, digest
    refused: list[tuple[str, str]]  # name, why
    damage: str  # why nothing after the last member can be found; empty = the tar is whole
    num_read: int  # members whose bytes were read for it


@dataclass(frozen=True)
class _Known:
    """A cached index; an unfinished one, of a killed run, has size 0 and time 0."""

    size: int
    mtime_ns: int
    heads: str
    damage: str
    entries: pa.Table


def index_tars(paths: Sequence[Path], store_path: Path = STORE_PATH) -> list[TarIndex]:
    """Return the indexes of tar files in the order asked for; each is cached as soon as it is made.

    Raises CorpusError where a file is not an uncompressed tar, or cannot be read.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        indexes = list(pool.map(lambda path: _index(path.absolute(), store_path), paths))
    for path, index in zip(paths, indexes, strict=True):
        _warn(path, index)
    return indexes


def _index(path: Path, store_path: Path) -> TarIndex:
    try:
        return with_store(store_path, lambda store: _refresh(path, store))
    except OSError as error:
        raise CorpusError(f"{path}: expected a tar file that can be read, found {error.strerror or error}") from None


def _refresh(path: Path, store: sqlite3.Connection) -> TarIndex:
    status = path.stat()
    store.execute(_TABLE)
    known = _recall(store, path)
    if known is not None and (known.size, known.mtime_ns) == (status.st_size, status.st_mtime_ns):
        return _as_index(known, num_read=0)
    if known is not None and status.st_size <= known.size:  # not grown, so another file
        known = None
    return _read(path, status, known, store)


def _read(path: Path, status: os.stat_result, known: _Known | None, store: sqlite3.Connection) -> TarIndex:
    """Iterate over the tar and read the bytes of every member that is not cached."""
    entries: list[Member] = []
    digests: list[str] = []
    num_read = 0
    saved = time.monotonic()
    num_known = len(known.entries) if known is not None else 0
    with path.open("rb") as file:
        walk = Walk(file, path)
        for member in walk:
            entries.append(member)
            if known is not None and len(entries) == num_known and walk.heads == known.heads:
                digests = _up_to_unread(entries, known.entries["digest"].to_pylist())
            if len(entries) >= num_known:
                num_read += _read_missing(file, path, entries, digests)
            if time.monotonic() - saved > _SECONDS_BETWEEN_SAVES and len(digests) == len(entries):
                _remember(store, path, _Known(0, 0, walk.heads, "", _as_table(entries, digests)))
                log.info(
                    "%s: %d members, %.1f of %.1f GB",
                    path.name,
                    len(entries),
                    member.offset / 1e9,
                    status.st_size / 1e9,
                )
                saved = time.monotonic()
        num_read += _read_missing(file, path, entries, digests)
    made = _Known(status.st_size, status.st_mtime_ns, walk.heads, walk.damage, _as_table(entries, digests))
    if settled(status) and all(digest or entry.refused for entry, digest in zip(entries, digests, strict=True)):
        _remember(store, path, made)
    return _as_index(made, num_read)


def _up_to_unread(entries: Sequence[Member], digests: Sequence[str]) -> list[str]:
    """Return the digests before the first member that an earlier run could not read."""
    pairs = zip(entries, digests, strict=True)
    unread = (position for position, (entry, digest) in enumerate(pairs) if not digest and not entry.refused)
    return list(digests[: next(unread, len(digests))])


def _read_missing(file: BinaryIO, path: Path, entries: list[Member], digests: list[str]) -> int:
    """Append the digests of the members that `digests` lacks; return how many were read."""
    todo = entries[len(digests) :]
    digests += ["" if member.refused else _digest(file, path, member) for member in todo]
    return sum(not member.refused for member in todo)


def _digest(file: BinaryIO, path: Path, member: Member) -> str:
    digest, left = hashlib.sha256(), member.size
    try:
        file.seek(member.offset)
        while left:
            piece = file.read(min(left, _PIECE))
            if not piece:
                raise OSError("the file became shorter")
            digest.update(piece)
            left -= len(piece)
    except OSError as error:
        log.warning("%s: %s cannot be read: %s", path, member.name, error)
        return ""
    return digest.hexdigest()[:32]


def _as_table(entries: Iterable[Member], digests: Sequence[str]) -> pa.Table:
    rows = [(e.name, e.offset, e.size, e.refused, digest) for e, digest in zip(entries, digests, strict=True)]
    columns = list(map(list, zip(*rows, strict=True))) or [[] for _ in _ENTRIES]
    return pa.table(columns, schema=_ENTRIES)


def _as_index(known: _Known, num_read: int) -> TarIndex:
    accepted = pc.equal(known.entries["refused"], "")
    refused = known.entries.filter(pc.invert(accepted))
    reasons = list(zip(refused["name"].to_pylist(), refused["refused"].to_pylist(), strict=True))
    return TarIndex(known.entries.filter(accepted).drop_columns(["refused"]), reasons, known.damage, num_read)


def _warn(path: Path, index: TarIndex) -> None:
    if index.refused:
        named = ", ".join(f"{name!r} ({why})" for name, why in index.refused[:_NAMED])
        more = f", and {len(index.refused) - _NAMED} more" if len(index.refused) > _NAMED else ""
        log.warning("%s: refused %d members, which are not read: %s%s", path, len(index.refused), named, more)
    if index.damage:
        num = len(index.members)
        log.warning(
            "%s: %s; the %d members before are used. Fetch the tar again for the others", path, index.damage, num
        )


def _recall(store: sqlite3.Connection, path: Path) -> _Known | None:
    query = "SELECT size, mtime_ns, heads, damage, entries, checksum FROM tar_files WHERE path = ?"
    row = store.execute(query, (os.fspath(path),)).fetchone()
    if row is None or checksum(os.fspath(path), *row[:-1]) != row[-1]:
        return None
    size, mtime_ns, heads, damage, entries, _ = row
    return _Known(size, mtime_ns, heads, damage, pa.ipc.open_stream(entries).read_all())


def _remember(store: sqlite3.Connection, path: Path, known: _Known) -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, _ENTRIES, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(known.entries)
    row = (os.fspath(path), known.size, known.mtime_ns, known.heads, known.damage, sink.getvalue().to_pybytes())
    with store:
        store.execute("INSERT OR REPLACE INTO tar_files VALUES (?, ?, ?, ?, ?, ?, ?)", (*row, checksum(*row)))
