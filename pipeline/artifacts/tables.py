"""Parquet artifacts: a schema written as data, and the only ways to write and open one.

Conventions: one row per clip, keyed by `clip_id`. What holds for the whole table (class list, vocabulary size, ...) are its
*facts*, stored as JSON in the file's own metadata, so that a table explains itself without its neighbours. A digest
over facts and columns stands beside them: a file that was edited afterwards, or was cut short, does not open.
"""

import builtins
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifacts.files import replacing
from pipeline.errors import ArtifactError

_KEY = b"sonolex"


@dataclass(frozen=True)
class Table:
    """An opened table: `columns` (pyarrow) and the facts that hold for all of it."""

    path: Path
    columns: pa.Table
    facts: dict[str, Any]

    def __len__(self) -> int:
        return int(self.columns.num_rows)

    def __getitem__(self, name: str) -> pa.ChunkedArray:
        return self.columns[name]

    def list(self, name: str) -> "builtins.list[Any]":
        """Return a column as a list of Python values."""
        values: builtins.list[Any] = self.columns[name].to_pylist()
        return values


@dataclass(frozen=True)
class TableSchema:
    """Columns, facts and maker of one kind of table."""

    name: str
    version: int
    stage: str  # the stage that writes it, for error messages
    columns: Mapping[str, pa.DataType]  # none of them may hold nulls
    facts: Mapping[str, type] = field(default_factory=dict)

    @property
    def arrow(self) -> pa.Schema:
        return pa.schema([pa.field(name, kind, nullable=False) for name, kind in self.columns.items()])

    def write(self, path: Path, columns: Mapping[str, Sequence[Any]] | pa.Table, facts: Mapping[str, Any]) -> str:
        """Write the table in one step (temporary file, then rename) and return its digest."""
        table = columns if isinstance(columns, pa.Table) else pa.table(dict(columns), schema=self.arrow)
        table = table.select(list(self.columns)).cast(self.arrow)
        digest = _digest(table, facts)
        head = {"artifact": self.name, "version": self.version, "digest": digest, "facts": dict(facts)}
        self._check_facts(path, facts)
        text = json.dumps(head, sort_keys=True, ensure_ascii=False, allow_nan=False)
        with replacing(path) as partial:
            pq.write_table(
                table.replace_schema_metadata({_KEY: text.encode()}),
                partial,
                compression="zstd",
                write_page_checksum=True,
            )
        return digest

    def open(self, path: Path) -> Table:
        """Open and check a table. Raises ArtifactError that names the file, the field, and the stage to rerun."""
        head = self.read_head(path)
        try:
            table = pq.read_table(path, page_checksum_verification=True, partitioning=None)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self.error(path, "pages", expected="readable Parquet pages", found=str(error)) from None
        found = {name: table.schema.field(name).type for name in table.column_names}
        if found != dict(self.columns):
            raise self.error(path, "columns", expected=_spell(self.columns), found=_spell(found))
        table = table.cast(self.arrow)
        for name in self.columns:
            if table[name].null_count:
                raise self.error(path, name, expected="no nulls", found=f"{table[name].null_count} nulls")
        digest = _digest(table, head["facts"])
        if digest != head.get("digest"):
            expected = f"{head.get('digest')} as written"
            raise self.error(path, "digest", expected=expected, found=f"{digest}: edited afterwards")
        return Table(path, table, head["facts"])

    def read_head(self, path: Path) -> dict[str, Any]:
        """Read the facts and digest alone, without the columns."""
        if not path.exists():
            raise self.error(path, "file", expected=f"a {self.name} table", found="no file")
        try:
            schema = pq.read_schema(path)
            metadata, _ = schema.metadata or {}, schema.names  # names that are no UTF-8 fail when asked for
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self.error(path, "file", expected="a whole Parquet file", found=str(error)) from None
        if _KEY not in metadata:
            raise self.error(path, "metadata", expected="Sonolex facts", found="none: written by another program")
        try:
            head: dict[str, Any] = json.loads(metadata[_KEY])
        except ValueError as error:
            raise self.error(path, "metadata", expected="Sonolex facts as JSON", found=str(error)) from None
        for key, expected in (("artifact", self.name), ("version", self.version)):
            if head.get(key) != expected:
                raise self.error(path, key, expected=expected, found=head.get(key))
        if not isinstance(head.get("facts"), dict):
            raise self.error(path, "metadata", expected="facts", found=head.get("facts"))
        self._check_facts(path, head["facts"])
        return head

    def error(self, path: Path, field_name: str, *, expected: object, found: object) -> ArtifactError:
        """Build the error for a table of this kind."""
        return ArtifactError(path, field_name, expected=expected, found=found, stage=self.stage)

    def _check_facts(self, path: Path, facts: Mapping[str, Any]) -> None:
        check_facts(self.facts, facts, lambda key, **found: self.error(path, key, **found))


def check_facts(expected: Mapping[str, type], found: Mapping[str, Any], error: Any) -> None:
    """Raise `error(key, expected=, found=)` unless `found` has exactly the expected keys and types (int passes as float)."""
    for key, kind in expected.items():
        if key not in found:
            raise error(f"fact {key}", expected=kind.__name__, found="nothing")
        value = found[key]
        accepted = (int, float) if kind is float else kind
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise error(f"fact {key}", expected=kind.__name__, found=f"{type(value).__name__} {value!r}")
    unknown = sorted(set(found) - set(expected))
    if unknown:
        raise error(f"fact {unknown[0]}", expected=f"only {', '.join(expected)}", found="an unknown fact")


def _spell(columns: Mapping[str, pa.DataType]) -> str:
    return ", ".join(f"{name}: {kind}" for name, kind in columns.items())


def facts_digest(facts: Mapping[str, Any]) -> str:
    """Hash facts by what JSON keeps of them: the same before writing and after reading."""
    plain = json.loads(json.dumps(facts))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:32]


def _digest(table: pa.Table, facts: Mapping[str, Any]) -> str:
    """Hash the facts and the columns' values, whatever their chunking."""
    digest = hashlib.sha256(facts_digest(facts).encode())

    class Sink:
        closed = False

        def write(self, data: Any) -> int:
            digest.update(data)
            return len(data)

        def flush(self) -> None: ...
        def close(self) -> None: ...

    plain = table.combine_chunks().replace_schema_metadata(None)
    with pa.ipc.new_stream(pa.PythonFile(Sink(), mode="w"), plain.schema) as writer:
        writer.write_table(plain, max_chunksize=1 << 16)
    return digest.hexdigest()[:32]
