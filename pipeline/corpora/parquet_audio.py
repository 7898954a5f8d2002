"""Audio in Parquet files: index of the rows of a file as clips with digests, and reading of rows in place.

A column of audio is as Hugging Face writes its feature `Audio`: a struct of `bytes` (an encoded file) and `path` (its name,
or null); or a column of binary values.

Indexes are cached with the digests of plain files, by path, size and modification time: of an unchanged file only the footer
is read again, and a file that was replaced is read whole. Digests are those of plain files with the same bytes: packing a
corpus into Parquet files changes no result.

Conventions: rows are numbered from 0, over all row groups of a file. Rows are cheapest to read in their order: `read_row`
decodes from the last row that it read to the next, and starts at the beginning of a row group only for another group or an
earlier row. It holds one page and a few rows: 60 MB for row groups of 200 MB in pages of content-defined chunks, as Hugging
Face writes them today; and the whole row group where a writer made it one page.
"""

import hashlib
import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.corpora.content import STORE_PATH, checksum, settled, with_store
from pipeline.errors import CorpusError

log = logging.getLogger(__name__)

SUFFIX = ".parquet"

_THREADS = 4  # files read at a time
_ROWS = 8  # decoded at a time; ten seconds of the largest usual format take 4 MB
_BUFFER = 1 << 20  # bytes of a column read at a time
_SECONDS_BETWEEN_SAVES = 30.0  # of reading, which a killed run loses
_NO_BYTES = "without bytes"

_ENTRIES = pa.schema({"row": pa.int64(), "name": pa.string(), "size": pa.int64(), "digest": pa.string()})
_TABLE = """
CREATE TABLE IF NOT EXISTS parquet_files
    (path TEXT PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, audio TEXT NOT NULL, groups INTEGER NOT NULL,
     entries BLOB NOT NULL, checksum INTEGER NOT NULL) WITHOUT ROWID
"""


@dataclass(frozen=True)
class ParquetIndex:
    """Index of one file: its rows with audio, in their order."""

    rows: pa.Table  # row; name, unique in the file; size in bytes; digest, empty where the row cannot be read
    num_empty: int  # rows without bytes
    num_read: int  # rows whose bytes were read for it


@dataclass(frozen=True)
class _Known:
    """A cached index; of a killed run, that of the first row groups."""

    size: int
    mtime_ns: int
    audio: str  # name of the column
    groups: int  # row groups that `entries` holds
    entries: pa.Table


def index_parquet(paths: Sequence[Path], store_path: Path = STORE_PATH) -> list[ParquetIndex]:
    """Return the indexes of Parquet files in the order asked for; each is cached as soon as it is made.

    Raises CorpusError where a file is not Parquet with one column of audio, or cannot be read.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        indexes = list(pool.map(lambda path: _index(path.absolute(), store_path), paths))
    for path, index in zip(paths, indexes, strict=True):
        if index.num_empty:
            log.warning("%s: %d rows have no bytes of audio, and are not read", path, index.num_empty)
    return indexes


def read_columns(path: Path, columns: Sequence[str]) -> pa.Table:
    """Return those of the columns that a Parquet file has, with a row for each of its rows; audio is not read.

    Raises CorpusError where the file is not Parquet, or cannot be read.
    """
    with _open(path) as file:
        names = [name for name in columns if name in file.schema_arrow.names]
        try:
            return file.read(names, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(path, error) from None


def read_row(path: Path, row: int) -> bytes | None:
    """Return the bytes of one row's audio; None where the file, which was replaced, has no such row with bytes.

    Raises OSError where the file cannot be read, also where it is damaged, and CorpusError where it is no Parquet file.
    """
    status = path.stat()
    state = (path, status.st_ino, status.st_size, status.st_mtime_ns)
    if _last.reader is None or _last.state != state:
        _last.reader = None  # if the new file cannot be opened
        _last.state, _last.reader = state, _RowReader(path)
    return _last.reader.read(row)


class _RowReader:
    """Audio of one file, read forward: rows that are asked for in ascending order are decoded once."""

    def __init__(self, path: Path) -> None:
        self._file = _open(path)
        self._column = _audio_column(path, self._file.schema_arrow)
        self._starts = _group_starts(self._file)
        self._group = -1
        self._batches: Iterator[pa.Array] = iter(())
        self._first, self._batch = 0, pa.array([], pa.binary())

    def read(self, row: int) -> bytes | None:
        """Return the bytes of a row, or None; see `read_row`."""
        if not 0 <= row < self._starts[-1]:
            return None
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        if group != self._group or row < self._first:
            self._group, self._first, self._batch = group, int(self._starts[group]), pa.array([], pa.binary())
            self._batches = (audio for audio, _ in _batches(self._file, self._column, group))
        try:
            while row >= self._first + len(self._batch):
                self._first += len(self._batch)
                self._batch = next(self._batches)
        except (pa.ArrowException, StopIteration) as error:
            self._group = -1
            raise OSError(f"row {row} cannot be decoded: {error or 'the row group has fewer rows'}") from None
        content: bytes | None = self._batch[row - self._first].as_py()
        return content or None


class _LastRead(threading.local):
    """The file that this thread read last, open at its row."""

    state: tuple[Path, int, int, int] | None = None  # path, and inode, size and time of modification
    reader: _RowReader | None = None


_last = _LastRead()


def _index(path: Path, store_path: Path) -> ParquetIndex:
    try:
        return with_store(store_path, lambda store: _refresh(path, store))
    except OSError as error:
        raise _unreadable(path, error) from None


def _refresh(path: Path, store: sqlite3.Connection) -> ParquetIndex:
    status = path.stat()
    store.execute(_TABLE)
    known = _recall(store, path)
    if known is not None and (known.size, known.mtime_ns) != (status.st_size, status.st_mtime_ns):
        known = None  # another file
    with _open(path) as file:
        if known is None:
            audio = _audio_column(path, file.schema_arrow)
            known = _Known(status.st_size, status.st_mtime_ns, audio, 0, _ENTRIES.empty_table())
        if known.groups == file.num_row_groups:
            return _as_index(known.entries, num_read=0)
        return _read(path, file, known, store, keep=settled(status))


def _read(path: Path, file: pq.ParquetFile, known: _Known, store: sqlite3.Connection, *, keep: bool) -> ParquetIndex:
    """Read the row groups that are not cached; one that cannot be read has rows without digests, and is not cached."""
    starts, pieces, saved = _group_starts(file), [known.entries], time.monotonic()
    for group in range(known.groups, file.num_row_groups):
        try:
            pieces.append(_entries(file, known.audio, group, int(starts[group])))
        except (pa.ArrowException, OSError) as error:
            rows = range(starts[group], starts[group + 1])
            log.warning("%s: rows %d to %d cannot be read: %s", path, rows[0], rows[-1], error)
            names = [f"row {row}" for row in rows]
            pieces.append(pa.table([rows, names, [0] * len(rows), [""] * len(rows)], schema=_ENTRIES))
            keep = False
        last = group + 1 == file.num_row_groups
        if keep and (last or time.monotonic() - saved > _SECONDS_BETWEEN_SAVES):
            made = _Known(known.size, known.mtime_ns, known.audio, group + 1, pa.concat_tables(pieces))
            _remember(store, path, made)
            log.info("%s: %d of %d row groups", path.name, group + 1, file.num_row_groups)
            saved = time.monotonic()
    entries = pa.concat_tables(pieces)
    return _as_index(entries, num_read=len(entries) - len(known.entries))


def _entries(file: pq.ParquetFile, column: str, group: int, first: int) -> pa.Table:
    """Return the _ENTRIES of a row group whose first row is `first`; a row without bytes has no digest and the size -1."""
    names: list[str] = []
    sizes: list[int] = []
    digests: list[str] = []
    for audio, paths in _batches(file, column, group):
        for value, path in zip(audio, paths, strict=True):
            names.append(path.as_py() or f"row {first + len(names)}")
            encoded = memoryview(value.as_buffer()) if value.is_valid else b""
            sizes.append(len(encoded) or -1)
            digests.append(hashlib.sha256(encoded).hexdigest()[:32] if len(encoded) else "")
    return pa.table([np.arange(first, first + len(names)), names, sizes, digests], schema=_ENTRIES)


def _batches(file: pq.ParquetFile, column: str, group: int) -> Iterator[tuple[pa.Array, pa.Array]]:
    """Yield the audio and the names of a row group, some rows at a time."""
    is_struct = pa.types.is_struct(file.schema_arrow.field(column).type)
    leaves = [f"{column}.bytes", f"{column}.path"] if is_struct else [column]
    for batch in file.iter_batches(_ROWS, row_groups=[group], columns=leaves, use_threads=False):
        values = batch.column(0)
        has_path = is_struct and values.type.get_field_index("path") >= 0
        paths = pc.struct_field(values, "path") if has_path else pa.nulls(len(values), pa.string())
        yield pc.struct_field(values, "bytes") if is_struct else values, paths


def _group_starts(file: pq.ParquetFile) -> np.ndarray:
    """Return the first row of each row group, and the number of rows at the end: (group + 1,) int64."""
    sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])


def _open(path: Path) -> pq.ParquetFile:
    try:
        # Without a buffer, and with pre_buffer, the whole column of a row group would be in memory.
        return pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False)
    except pa.ArrowInvalid as error:
        with path.open("rb") as file:
            pointer = file.read(64).startswith(b"version https://git-lfs")
        found = (
            "a Git LFS pointer; fetch the file itself with `git lfs pull`" if pointer else f"{error}; fetch it again"
        )
        raise CorpusError(f"{path}: expected a Parquet file, found {found}") from None


def _audio_column(path: Path, schema: pa.Schema) -> str:
    """Return the name of the column of audio. Raises CorpusError unless there is one."""
    audio = [field.name for field in schema if _holds_bytes(field.type)]
    if len(audio) > 1:  # images are stored in the same way
        declared = _declared_audio(schema)
        audio = [name for name in audio if name in declared]
    if len(audio) == 1:
        return str(audio[0])
    expected = "one column of audio (struct<bytes: binary, path: string>, or binary)"
    found = ", ".join(f"{field.name}: {field.type}" for field in schema)
    raise CorpusError(f"{path}: expected {expected}, found {found}; write the file with one such column")


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        position = kind.get_field_index("bytes")
        return position >= 0 and _holds_bytes(kind.field(position).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _declared_audio(schema: pa.Schema) -> set[str]:
    """Return the columns that Hugging Face's metadata declare as audio."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name for name, feature in features.items() if feature.get("_type") == "Audio"}
    except (KeyError, ValueError, AttributeError, TypeError):
        return set()


def _as_index(entries: pa.Table, num_read: int) -> ParquetIndex:
    """Return the index of entries; names that a file has twice are replaced by the row's number."""
    counts = pc.value_counts(entries["name"].combine_chunks())
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    numbers = pc.binary_join_element_wise("row", entries["row"].cast(pa.string()), " ")
    names = pc.if_else(pc.is_in(entries["name"], repeated), numbers, entries["name"])
    entries = entries.set_column(entries.column_names.index("name"), "name", names)
    rows = entries.filter(pc.greater_equal(entries["size"], 0))
    return ParquetIndex(rows, len(entries) - len(rows), num_read)


def _unreadable(path: Path, error: Exception) -> CorpusError:
    found = (error.strerror if isinstance(error, OSError) else None) or error
    return CorpusError(
        f"{path}: expected a Parquet file that can be read, found: {found}; fetch it again, or see to its permissions"
    )


def _recall(store: sqlite3.Connection, path: Path) -> _Known | None:
    query = "SELECT size, mtime_ns, audio, groups, entries, checksum FROM parquet_files WHERE path = ?"
    row = store.execute(query, (os.fspath(path),)).fetchone()
    if row is None or checksum(os.fspath(path), *row[:-1]) != row[-1]:
        return None
    size, mtime_ns, audio, groups, entries, _ = row
    return _Known(size, mtime_ns, audio, groups, pa.ipc.open_stream(entries).read_all())


def _remember(store: sqlite3.Connection, path: Path, known: _Known) -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, _ENTRIES, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(known.entries)
    row = (os.fspath(path), known.size, known.mtime_ns, known.audio, known.groups, sink.getvalue().to_pybytes())
    with store:
        store.execute("INSERT OR REPLACE INTO parquet_files VALUES (?, ?, ?, ?, ?, ?, ?)", (*row, checksum(*row)))
