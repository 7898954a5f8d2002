"""How the project is typed: few annotations say `Any`, and what a module can do is said by its contract, not probed for."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = [path for folder in ("pipeline", "stages", "tools") for path in sorted((ROOT / folder).rglob("*.py"))]
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


# What a module can do is an attribute of its contract. Left to ask are functions that Python lacks on some systems.
PROBED = {
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
