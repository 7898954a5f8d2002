"""Parquet artifacts: schemas with columns and metadata, checked on writing and opening.

Conventions: one row per clip, keyed by `clip_id`. What holds for the whole table (class list, vocabulary size, ...) is its
*metadata*, stored as JSON in the file's own metadata, so that a table can be read without other artifacts. It includes a
digest over metadata and columns: a file that was edited afterwards or truncated does not open.
"""

import builtins
import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import (
    Any,
    Generic,
    Literal,
    NamedTuple,
    NotRequired,
    Protocol,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

import pyarrow as pa
import pyarrow.parquet as pq
from typing_extensions import Buffer, TypeVar

from pipeline.artifacts.files import parse_json, replacing
from pipeline.artifacts.settings import SETTINGS, Metadata
from pipeline.errors import ArtifactError

_KEY, _DIGEST_KEY = b"sonolex", b"sonolex.digest"
_DIGEST_ROWS = 4096  # hashed at a time; the digest depends on it
_PART_ROWS = 512  # of a table that is read in parts: some 8 MB of tokens of ten-second clips in eight codebooks

M = TypeVar("M", bound=Metadata)  # of one kind of table
M_co = TypeVar("M_co", bound=Metadata, covariant=True, default=Metadata)


@dataclass(frozen=True)
class Table(Generic[M_co]):
    """An opened table: `columns` (pyarrow) and the metadata that holds for all of it.

    `Table[ClipsMetadata]` is the manifest; a plain `Table` is one of which only the columns are read.
    """

    path: Path
    columns: pa.Table
    metadata: M_co

    def __len__(self) -> int:
        return int(self.columns.num_rows)

    def __getitem__(self, name: str) -> pa.ChunkedArray:
        return self.columns[name]

    def list(self, name: str) -> "builtins.list[Any]":
        """Return a column as a list of Python values."""
        values: builtins.list[Any] = self.columns[name].to_pylist()
        return values


class _Head(NamedTuple, Generic[M]):
    """Metadata of a file, and their digest, read before its columns."""

    metadata: M
    digest: str  # over metadata and columns


@dataclass(frozen=True)
class TableSchema(Generic[M]):
    """Schema of one kind of table: columns, metadata, and the stage that writes it."""

    name: str
    version: int
    stage: str  # the stage that writes it, for error messages
    columns: Mapping[str, pa.DataType]  # none of them may hold nulls
    metadata: type[M]  # a TypedDict

    @property
    def arrow(self) -> pa.Schema:
        return pa.schema([pa.field(name, kind, nullable=False) for name, kind in self.columns.items()])

    def write(self, path: Path, columns: Mapping[str, Sequence[object]] | pa.Table, metadata: M) -> str:
        """Write the table in one step (temporary file, then rename) and return its digest."""
        table = columns if isinstance(columns, pa.Table) else pa.table(dict(columns), schema=self.arrow)
        return self.write_parts(path, [table], metadata)

    def write_parts(self, path: Path, parts: Iterable[pa.Table], metadata: M) -> str:
        """Write a table that comes in parts, one in memory at a time; see `write`."""
        self._check_metadata(path, metadata)
        head = {"artifact": self.name, "version": self.version, "metadata": dict(metadata)}
        text = json.dumps(head, sort_keys=True, ensure_ascii=False, allow_nan=False)
        digest = _Digest(self.arrow, metadata)
        with replacing(path) as partial:
            schema = self.arrow.with_metadata({_KEY: text.encode()})
            with pq.ParquetWriter(partial, schema, compression="zstd", write_page_checksum=True) as writer:
                for part in parts:
                    table = part.select(list(self.columns)).cast(self.arrow)
                    digest.update(table)
                    writer.write_table(table.replace_schema_metadata(schema.metadata))
                value = digest.value()  # known only now: the metadata stands at the front of the file, this at its end
                writer.add_key_value_metadata({_DIGEST_KEY.decode(): value})
        return value

    def open(self, path: Path) -> Table[M]:
        """Open and check a table. Raises ArtifactError that names the file, the field, and the stage to rerun."""
        head = self.read_head(path)
        try:
            table = pq.read_table(path, page_checksum_verification=True, partitioning=None)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._unreadable(path, error) from None
        table = self._require_columns(path, table)
        self._require_digest(path, head, _digest(table, head.metadata))
        return Table(path, table, head.metadata)

    def open_parts(self, path: Path) -> tuple[M, Iterator[pa.Table]]:
        """Return the metadata of a table, and its rows in parts, of which one is in memory at a time; see `open`.

        The digest is over all rows: it is compared after the last part.
        """
        head = self.read_head(path)
        return head.metadata, self._read_parts(path, head)

    def _read_parts(self, path: Path, head: _Head[M]) -> Iterator[pa.Table]:
        digest = _Digest(self.arrow, head.metadata)
        for batch in self._read_batches(path):
            part = self._require_columns(path, pa.Table.from_batches([batch]))
            digest.update(part)
            yield part
        self._require_digest(path, head, digest.value())
        pa.default_memory_pool().release_unused()  # what decoding took goes back to the system

    def _read_batches(self, path: Path) -> Iterator[pa.RecordBatch]:
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                # A reader of all groups keeps the pages of those that it has read.
                for group in range(file.num_row_groups):
                    yield from file.iter_batches(_PART_ROWS, row_groups=[group])
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._unreadable(path, error) from None

    def _unreadable(self, path: Path, error: Exception) -> ArtifactError:
        return self.error(path, "pages", expected="readable Parquet pages", found=str(error))

    def _require_columns(self, path: Path, table: pa.Table) -> pa.Table:
        found = {name: table.schema.field(name).type for name in table.column_names}
        if found != dict(self.columns):
            raise self.error(path, "columns", expected=_spell(self.columns), found=_spell(found))
        for name in self.columns:
            if table[name].null_count:
                raise self.error(path, name, expected="no nulls", found=f"{table[name].null_count} nulls")
        return table.cast(self.arrow)

    def _require_digest(self, path: Path, head: _Head[M], digest: str) -> None:
        if digest != head.digest:
            expected = f"{head.digest} as written"
            raise self.error(path, "digest", expected=expected, found=f"{digest}: edited afterwards")

    def read_head(self, path: Path) -> _Head[M]:
        """Read the metadata and the digest without the columns."""
        if not path.exists():
            raise self.error(path, "file", expected=f"a {self.name} table", found="no file")
        try:
            names = pq.read_schema(path).names  # names that are not UTF-8 fail on access
            stored = pq.read_metadata(path).metadata or {}
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self.error(path, "file", expected="a whole Parquet file", found=str(error)) from None
        if _KEY not in stored or not names:
            raise self.error(path, "metadata", expected="Sonolex metadata", found="none: written by another program")
        try:
            head = parse_json(stored[_KEY])
            digest = stored.get(_DIGEST_KEY, b"none").decode()
        except ValueError as error:
            raise self.error(path, "metadata", expected="Sonolex metadata as JSON", found=str(error)) from None
        for key, expected in (("artifact", self.name), ("version", self.version)):
            if head.get(key) != expected:
                raise self.error(path, key, expected=expected, found=head.get(key))
        if not isinstance(head.get("metadata"), dict):
            raise self.error(path, "metadata", expected="metadata", found=head.get("metadata"))
        self._check_metadata(path, head["metadata"])
        return _Head(head["metadata"], digest)

    def read_metadata(self, path: Path) -> M:
        """Read the metadata alone, without the columns."""
        return self.read_head(path).metadata

    def error(self, path: Path, field_name: str, *, expected: object, found: object) -> ArtifactError:
        """Build the error for a table of this kind."""
        return ArtifactError(path, field_name, expected=expected, found=found, stage=self.stage)

    def _check_metadata(self, path: Path, metadata: Mapping[str, object]) -> None:
        check_metadata(
            metadata_types(self.metadata, metadata), metadata, lambda key, **found: self.error(path, key, **found)
        )


class _Error(Protocol):
    """Builds the error of one artifact."""

    def __call__(self, field: str, /, *, expected: object, found: object) -> ArtifactError: ...


def metadata_types(kind: type, present: Collection[str] = ()) -> dict[str, type]:
    """Return key -> class of its value as JSON has it, for a TypedDict's required keys, and others in `present`."""
    hints = get_type_hints(kind, include_extras=True)
    optional = {key: get_args(hint)[0] for key, hint in hints.items() if get_origin(hint) is NotRequired}
    chosen = {key: optional.get(key, hint) for key, hint in hints.items() if key in present or key not in optional}
    return {key: _json_type(hint) for key, hint in chosen.items()}


def _json_type(hint: object) -> type:
    origin = get_origin(hint)
    if origin is Literal:
        return type(get_args(hint)[0])
    kind = dict if is_typeddict(hint) else origin or hint
    assert isinstance(kind, type), f"{hint}: expected a TypedDict, a class or a Literal as the type of metadata"
    return kind


def check_metadata(expected: Mapping[str, type], found: Mapping[str, object], error: _Error) -> None:
    """Raise `error(key, expected=, found=)` unless `found` has the expected keys and types (int passes as float).

    No other key is allowed but `settings`, which any artifact may have.
    """
    for key, kind in expected.items():
        if key not in found:
            raise error(f"metadata {key}", expected=kind.__name__, found="nothing")
        value = found[key]
        accepted = (int, float) if kind is float else kind
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise error(f"metadata {key}", expected=kind.__name__, found=f"{type(value).__name__} {value!r}")
    unknown = sorted(set(found) - set(expected) - {SETTINGS})
    if unknown:
        raise error(f"metadata {unknown[0]}", expected=f"only {', '.join(expected)}", found="an unknown entry")


def _spell(columns: Mapping[str, pa.DataType]) -> str:
    return ", ".join(f"{name}: {kind}" for name, kind in columns.items())


def metadata_digest(metadata: Mapping[str, object]) -> str:
    """Hash metadata in its JSON form, which is the same before writing and after reading."""
    plain = json.loads(json.dumps(metadata))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:32]


class _Digest:
    """Running digest of metadata and columns, independent of how the rows are cut into parts."""

    def __init__(self, schema: pa.Schema, metadata: Mapping[str, object]) -> None:
        self.closed = False  # part of the file interface
        self._sha256 = hashlib.sha256(metadata_digest(metadata).encode())
        self._writer = pa.ipc.new_stream(pa.PythonFile(self, mode="w"), schema)
        self._waiting = [schema.empty_table()]

    def update(self, table: pa.Table) -> None:
        """Add rows; those that do not fill a block wait for the next ones."""
        self._waiting.append(table.replace_schema_metadata(None))
        if sum(part.num_rows for part in self._waiting) >= _DIGEST_ROWS:
            rows = pa.concat_tables(self._waiting)
            whole = rows.num_rows - rows.num_rows % _DIGEST_ROWS
            for start in range(0, whole, _DIGEST_ROWS):
                self._hash(rows.slice(start, _DIGEST_ROWS))
            self._waiting = [rows.slice(whole)]

    def value(self) -> str:
        """Return the digest of all rows."""
        self._hash(pa.concat_tables(self._waiting))
        self._writer.close()
        return self._sha256.hexdigest()[:32]

    def _hash(self, rows: pa.Table) -> None:
        # `take` makes new buffers: those of slices and of concatenated columns differ in their padding.
        self._writer.write_table(rows.combine_chunks().take(pa.array(range(rows.num_rows), pa.int64())))

    def write(self, data: Buffer) -> int:
        """Hash what the stream writes, in place of a file."""
        self._sha256.update(data)
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Do nothing, as a file without a buffer does."""


def _digest(table: pa.Table, metadata: Mapping[str, object]) -> str:
    digest = _Digest(table.schema.remove_metadata(), metadata)
    digest.update(table)
    return digest.value()
