"""Content digests of files, cached by path, size and modification time.

The digests of earlier runs are kept in an SQLite file, keyed by absolute path, size and modification time; all workspaces of
the project share it. It is a cache: deleting it costs only time. Every row has a checksum; a damaged row is not used, and a
cache that SQLite cannot read is replaced. A file that cannot be read has no digest, and is tried again on the next run.
"""

import errno
import functools
import logging
import os
import sqlite3
import stat
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pipeline.artifacts.files import file_digest, storage_fault
from pipeline.errors import CorpusError
from pipeline.paths import shared_path

log = logging.getLogger(__name__)

R = TypeVar("R")

STORE_PATH = Path(".sonolex/content.sqlite")

_BATCH = 512  # files per transaction, which a killed run loses
_THREADS = 4  # hashing waits for the disk more than for the processor
_SECONDS_BETWEEN_LINES = 10.0

# A file that changes twice within one clock tick keeps its time. As in git's index, a time this close to the present is
# therefore not trusted: the file is read again on the next run.
_UNSETTLED = 2 * 10**9  # ns

_TABLE = """
CREATE TABLE IF NOT EXISTS files
    (path TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, digest TEXT NOT NULL,
     checksum INTEGER NOT NULL) WITHOUT ROWID
"""

# SQLite's codes of errors that say nothing about the file: no permission, locked, no memory, failing disk, full, ...
_PASSING = frozenset(
    (
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
    )
)


@dataclass(frozen=True)
class Contents:
    """Digests in the order of the requested paths, and the number of files read for them."""

    digests: list[str]  # empty where the file is missing or unreadable
    num_hashed: int
    unreadable: tuple[str, ...] = ()  # paths, as asked for, of files that are there and cannot be read


def content_digests(paths: Sequence[Path | str], store_path: Path = STORE_PATH) -> Contents:
    """Return the digest of every file; each path may occur once. A missing or unreadable file has an empty digest.

    Sorted paths are fastest: each folder is listed once, and the digests of its files are fetched together. Raises
    CorpusError where a folder, or the cache, cannot be read.
    """
    return with_store(store_path, lambda store: _content_digests(paths, store))


def _content_digests(paths: Sequence[Path | str], store: sqlite3.Connection) -> Contents:
    store.execute(_TABLE)
    digests: list[str] = []
    unreadable: list[str] = []
    num_hashed = 0
    logged = time.monotonic()
    with ThreadPoolExecutor(_THREADS) as pool:
        for batch in _batches(paths):
            known = _recall(store, batch)
            unknown = [item for item, digest in zip(batch, known, strict=True) if digest is None]
            fresh = list(pool.map(_read, (path for path, _ in unknown)))
            _remember(store, unknown, fresh)
            rest = iter(fresh)
            there = [next(rest) if digest is None else digest for digest in known]
            asked = paths[len(digests) : len(digests) + len(batch)]
            unreadable += [
                str(path) for path, digest, was in zip(asked, there, known, strict=True) if was is None and not digest
            ]
            digests += there
            num_hashed += sum(digest != "" for digest in fresh)
            if time.monotonic() - logged > _SECONDS_BETWEEN_LINES:
                logged = time.monotonic()
                log.info("checked %d of %d files, read %d", len(digests), len(paths), num_hashed)
    return Contents(digests, num_hashed, tuple(unreadable))


def forget(paths: Iterable[Path], store_path: Path = STORE_PATH) -> None:
    """Remove files, plain, tar or Parquet, from the cache, since their content changed and their size and time did not."""
    if not shared_path(store_path).exists():
        return
    names = [(os.fspath(path.absolute()),) for path in paths]

    def remove(store: sqlite3.Connection) -> None:
        tables = {name for (name,) in store.execute("SELECT name FROM sqlite_master")}
        with store:
            for table in tables & {"files", "tar_files", "parquet_files"}:
                store.executemany(f"DELETE FROM {table} WHERE path = ?", names)  # noqa: S608 - one of three names

    with_store(store_path, remove)


def with_store(path: Path, work: Callable[[sqlite3.Connection], R]) -> R:
    """Return `work(cache)`; a damaged cache is replaced by an empty one, and the work is done again.

    A relative path is below the project, also in its workspaces. Raises CorpusError where the cache cannot be read or
    written.
    """
    path = shared_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return _work(path, work)
    except sqlite3.DatabaseError as error:
        if _is_passing(error, path):
            raise _cannot_use(path, error) from error
    log.warning("%s is damaged and is replaced by a new one: every file is read again", path)
    for suffix in ("", "-journal", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    return _work(path, work)


def _work(path: Path, work: Callable[[sqlite3.Connection], R]) -> R:
    with closing(sqlite3.connect(path, timeout=60)) as store:
        return work(store)


def _is_passing(error: sqlite3.DatabaseError, path: Path) -> bool:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
    if code == sqlite3.SQLITE_READONLY:  # also where a damaged header says so
        return not os.access(path, os.W_OK)
    return code in _PASSING


def _cannot_use(path: Path, error: sqlite3.DatabaseError) -> Exception:
    if storage_fault(error):  # a full disk, whose message is that of all stages
        return error
    return CorpusError(
        f"{path}: expected a cache of digests that can be read and written, found: {error}; see to the permissions of the "
        f"file and its folder, or to the disk, and run again"
    )


def settled(status: os.stat_result) -> bool:
    """Return whether a file's modification time is old enough to be trusted."""
    return status.st_mtime_ns < time.time_ns() - _UNSETTLED


def _batches(paths: Sequence[Path | str]) -> Iterator[list[tuple[str, os.stat_result | None]]]:
    names_in = functools.lru_cache(maxsize=8)(_names_in)  # sorted paths stay in one folder and its parents
    here = os.getcwd()  # noqa: PTH109 - for two million paths, Path objects take longer than reading the files
    for start in range(0, len(paths), _BATCH):
        batch = []
        for path in paths[start : start + _BATCH]:
            absolute = os.path.join(here, path)  # noqa: PTH118
            folder, _, name = absolute.rpartition("/")
            batch.append((absolute, _status(absolute) if name in names_in(folder) else None))
        yield batch


def _names_in(folder: str) -> frozenset[str]:
    """Return the names in a folder, so that missing files need no system call each; empty when it does not exist."""
    try:
        return frozenset(os.listdir(folder or "/"))  # noqa: PTH208
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    except OSError as error:  # its files are not missing
        raise CorpusError(
            f"{folder}: expected a folder that can be listed, found: {error.strerror}; see to its permissions, or to the "
            f"disk, and run again"
        ) from None


def _status(path: str) -> os.stat_result | None:
    """Return the file's size and times, or None when it is not a regular file."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise CorpusError(
            f"{path}: expected a file whose size and time can be read, found: {error.strerror}; see to the permissions of "
            f"its folder, or to the disk, and run again"
        ) from None
    return status if stat.S_ISREG(status.st_mode) else None


def _recall(store: sqlite3.Connection, batch: list[tuple[str, os.stat_result | None]]) -> list[str | None]:
    """Return the cached digest of each file, "" where the file is missing, or None where it must be read."""
    present = [path for path, status in batch if status is not None]
    known: dict[tuple[str, int, int], str] = {}
    if present:
        query = "SELECT path, size, mtime_ns, digest, checksum FROM files WHERE path BETWEEN ? AND ?"
        rows = store.execute(query, (min(present), max(present)))
        known = {row[:3]: row[3] for row in rows if checksum(*row[:4]) == row[4]}
    return ["" if status is None else known.get((path, status.st_size, status.st_mtime_ns)) for path, status in batch]


def checksum(*values: object) -> int:
    """Return the CRC-32 of a row's values."""
    total = 0
    for value in values:
        content = value if isinstance(value, bytes) else f"{value}\0".encode(errors="surrogatepass")
        total = zlib.crc32(content, total)
    return total


def _remember(store: sqlite3.Connection, files: list[tuple[str, os.stat_result | None]], digests: list[str]) -> None:
    rows = [
        (path, status.st_size, status.st_mtime_ns, digest, checksum(path, status.st_size, status.st_mtime_ns, digest))
        for (path, status), digest in zip(files, digests, strict=True)
        if digest and status is not None and settled(status)
    ]
    with store:
        store.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", rows)


def _read(path: str) -> str:
    try:
        return file_digest(Path(path))
    except OSError as error:
        log.warning("%s cannot be read: %s", path, error.strerror or error)
        return ""
