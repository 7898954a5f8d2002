"""How the project is typed: few annotations say `Any`, and what a module can do is said by its contract, not probed for."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypedDict

import pyarrow as pa
import pytest

from pipeline.artifacts.settings import Metadata
from pipeline.artifacts.tables import TableSchema, metadata_types
from pipeline.errors import ArtifactError

ROOT = Path(__file__).parent.parent
SOURCES = [
    path for folder in ("pipeline", "sonolex", "stages", "tools") for path in sorted((ROOT / folder).rglob("*.py"))
]
MOST_ANY = 80


def annotations_of(tree: ast.AST) -> Iterator[ast.expr]:
    """Yield the annotations of arguments, results and variables, those written as text included."""
    for node in ast.walk(tree):
        found = getattr(node, "annotation", None) or getattr(node, "returns", None)
        if isinstance(found, ast.Constant) and isinstance(found.value, str):
            yield ast.parse(found.value, mode="eval").body
        elif found is not None:
            yield found


def count_any(tree: ast.AST) -> int:
    """Count `Any` in annotations, and in aliases and defaults of type variables, which annotations name."""
    aliases = [node.value for node in ast.iter_child_nodes(tree) if isinstance(node, ast.Assign)]
    names = (name for root in (*annotations_of(tree), *aliases) for name in ast.walk(root))
    return sum(isinstance(name, ast.Name) and name.id == "Any" for name in names)


def test_few_annotations_say_any() -> None:
    counts = {path.relative_to(ROOT): count_any(ast.parse(path.read_text())) for path in SOURCES}
    assert sum(counts.values()) < MOST_ANY, {path: count for path, count in counts.items() if count}


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("x: dict[str, Any] = {}", 1),
        ("def f(a: Any, *b: Any, **c: Any) -> Any: ...", 4),
        ("class C:\n    x: 'list[Any]'", 1),
        ("Row = dict[str, Any]", 1),
        ("def f() -> None:\n    x: Any = 1", 1),
        ("from typing import Any", 0),
    ],
)
def test_any_is_counted_wherever_a_type_is_said(text: str, count: int) -> None:
    assert count_any(ast.parse(text)) == count


# What a module can do is an attribute of its contract. Left to ask is what Python itself has in part.
PROBED = {
    ("pipeline/artifacts/files.py", "sqlite_errorname"),  # of sqlite3.Error: on those alone that SQLite raised
    ("pipeline/corpora/content.py", "sqlite_errorcode"),  # likewise
    ("pipeline/artifacts/forks.py", "register_at_fork"),  # of os: not on Windows
    ("pipeline/execution/threads.py", "sched_getaffinity"),  # of os: on Linux alone
}


def test_nothing_is_probed_for_attributes() -> None:
    found = {
        (str(path.relative_to(ROOT)), node.args[1].value)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("hasattr", "getattr")
        and isinstance(node.args[1], ast.Constant)
    }
    assert found == PROBED


class Nested(TypedDict):
    low: float


class Example(Metadata):
    name: str
    kind: Literal["one", "many"]
    rows: list[int]
    inner: Nested
    share: float


def test_metadata_are_checked_by_the_class_that_types_them() -> None:
    assert metadata_types(Example) == {"name": str, "kind": str, "rows": list, "inner": dict, "share": float}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, ""),
        ({"share": 1, "settings": {"train.epochs": 3}}, ""),
        ({"name": 1}, "metadata name: expected str, found int 1"),
        ({"inner": [0.5]}, "metadata inner: expected dict, found list"),
        ({"share": True}, "metadata share: expected float, found bool True"),
        ({"colour": "red"}, "metadata colour: expected only name, kind, rows, inner, share"),
    ],
)
def test_a_table_whose_metadata_are_not_those_of_its_class_is_neither_written_nor_opened(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    schema = TableSchema("example", 1, "split", {"clip_id": pa.string()}, Example)
    loose = TableSchema("example", 1, "split", {"clip_id": pa.string()}, Metadata)
    values = {"name": "a", "kind": "one", "rows": [1], "inner": {"low": 0.5}, "share": 0.5} | changes
    path = tmp_path / "example.parquet"
    if not message:
        schema.write(path, {"clip_id": ["a"]}, values)
        assert schema.open(path).metadata == values
        return
    with pytest.raises(ArtifactError, match=message):
        schema.write(path, {"clip_id": ["a"]}, values)
    assert not path.exists()
    loose.write(path, {"clip_id": ["a"]}, {})
    with pytest.raises(ArtifactError, match="metadata name: expected str, found nothing"):
        schema.open(path)
