"""Content digests of files, cached by path, size and modification time.

The digests of earlier runs are kept in an SQLite file, keyed by absolute path, size and modification time; all workspaces of
the project share it. It is a cache: deleting it costs only time.
"""

import functools
import logging
import os
import sqlite3
import stat
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pipeline.artifacts.files import file_digest
from pipeline.paths import shared_path

log = logging.getLogger(__name__)

STORE_PATH = Path(".sonolex/content.sqlite")

_BATCH = 512  # files per transaction, which a killed run loses
_THREADS = 4  # hashing waits for the disk more than for the processor
_SECONDS_BETWEEN_LINES = 10.0

# A file that changes twice within one clock tick keeps its time. As in git's index, a time this close to the present is
# therefore not trusted: the file is read again on the next run.
_UNSETTLED = 2 * 10**9  # ns

_TABLE = """
CREATE TABLE IF NOT EXISTS content
    (path TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, digest TEXT NOT NULL) WITHOUT ROWID
"""


@dataclass(frozen=True)
class Contents:
    """Digests in the order of the requested paths, and the number of files read for them."""

    digests: list[str]  # empty where the file is missing or unreadable
    num_hashed: int


def content_digests(paths: Sequence[Path | str], store_path: Path = STORE_PATH) -> Contents:
    """Return the digest of every file; each path may occur once. A missing or unreadable file has an empty digest.

    Sorted paths are fastest: each folder is listed once, and the digests of its files are fetched together.
    """
    digests: list[str] = []
    num_hashed = 0
    logged = time.monotonic()
    with closing(open_store(store_path)) as store, ThreadPoolExecutor(_THREADS) as pool:
        for batch in _batches(paths):
            known = _recall(store, batch)
            unknown = [item for item, digest in zip(batch, known, strict=True) if digest is None]
            fresh = list(pool.map(_read, (path for path, _ in unknown)))
            _remember(store, unknown, fresh)
            rest = iter(fresh)
            digests += [next(rest) if digest is None else digest for digest in known]
            num_hashed += sum(digest != "" for digest in fresh)
            if time.monotonic() - logged > _SECONDS_BETWEEN_LINES:
                logged = time.monotonic()
                log.info("checked %d of %d files, read %d", len(digests), len(paths), num_hashed)
    return Contents(digests, num_hashed)


def open_store(path: Path) -> sqlite3.Connection:
    """Open or create the cache; a damaged one is replaced. A relative path is below the project, also in its workspaces."""
    path = shared_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(2):
        store = sqlite3.connect(path, timeout=60)
        try:
            store.execute(_TABLE)
        except sqlite3.OperationalError:  # locked, disk full, no permission: the file itself is not damaged
            store.close()
            raise
        except sqlite3.DatabaseError:
            store.close()
            if attempt:
                raise
            log.warning("%s is damaged and is replaced by a new one: every file is read again", path)
            path.unlink()
        else:
            break
    return store


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
    except OSError:
        return frozenset()


def _status(path: str) -> os.stat_result | None:
    """Return the file's size and times, or None when it is not a regular file."""
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _recall(store: sqlite3.Connection, batch: list[tuple[str, os.stat_result | None]]) -> list[str | None]:
    """Return the cached digest of each file, "" where the file is missing, or None where it must be read."""
    present = [path for path, status in batch if status is not None]
    known: dict[tuple[str, int, int], str] = {}
    if present:
        query = "SELECT path, size, mtime_ns, digest FROM content WHERE path BETWEEN ? AND ?"
        known = {row[:3]: row[3] for row in store.execute(query, (min(present), max(present)))}
    return ["" if status is None else known.get((path, status.st_size, status.st_mtime_ns)) for path, status in batch]


def _remember(store: sqlite3.Connection, files: list[tuple[str, os.stat_result | None]], digests: list[str]) -> None:
    rows = [
        (path, status.st_size, status.st_mtime_ns, digest)
        for (path, status), digest in zip(files, digests, strict=True)
        if digest and status is not None and settled(status)
    ]
    with store:
        store.executemany("INSERT OR REPLACE INTO content VALUES (?, ?, ?, ?)", rows)


def _read(path: str) -> str:
    try:
        return file_digest(Path(path))
    except OSError as error:
        log.warning("%s cannot be read: %s", path, error)
        return ""
