"""Which files a stage is made of: the import closure of its module, as `deps:` in dvc.yaml must list it.

DVC does not follow imports, so each stage lists them. `python -m tools.closure --write` (or `make deps`) brings dvc.yaml up
to date; a test fails when it is not. Imports inside functions count, and so do strings that name a module (the
registries import by name, when asked).
"""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
GRAPH = ROOT / "dvc.yaml"
PACKAGES = ("pipeline", "stages", "tools")


def module_path(name: str, root: Path = ROOT) -> Path | None:
    """Return the file of a module of this project, or None for any other name."""
    if name.split(".")[0] not in PACKAGES:
        return None
    base = root.joinpath(*name.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.exists():
            return path
    return None


def imports_of(path: Path, root: Path = ROOT) -> set[str]:
    """Return the project's modules that a file imports or names, packages on the way included."""
    found: set[str] = set()
    for node in _nodes(path):
        for name in _names(node):
            parts = name.split(".")
            prefixes = [".".join(parts[: i + 1]) for i in range(len(parts))]
            found |= {prefix for prefix in prefixes if module_path(prefix, root)}
    return found


def closure(module: str, root: Path = ROOT) -> set[str]:
    """Return the files, relative to the root, that a module needs to run, templates beside the code included."""
    todo, seen = [module], set()
    while todo:
        name = todo.pop()
        path = module_path(name, root)
        if path is None or path in seen:
            continue
        seen.add(path)
        todo += imports_of(path, root) | {name.rpartition(".")[0]}
        seen |= {
            path.with_name(text) for text in _strings(path) if text.endswith(".j2") and path.with_name(text).exists()
        }
    # An empty __init__.py holds nothing that could change a result.
    return {str(path.relative_to(root)) for path in seen if path.stat().st_size}


def collapse(files: set[str], root: Path = ROOT) -> list[str]:
    """Return the files as dependencies: a folder of which a stage uses every file stands for its files.

    DVC writes all of dvc.lock after every stage, so its length is time: a folder is one entry.
    """
    deps = set(files)
    for folder in sorted({str(Path(file).parent) for file in files}):
        inside = {str(path.relative_to(root)) for path in _code_in(root / folder)}
        if len(inside) > 1 and inside <= files:
            deps = (deps - inside) | {folder}
    return sorted(deps)


def expand(deps: list[str], root: Path = ROOT) -> set[str]:
    """Return the files behind dependencies; the inverse of `collapse`."""
    files = set()
    for dep in deps:
        path = root / dep
        inside = _code_in(path) if path.is_dir() else [path]
        files |= {str(file.relative_to(root)) for file in inside}
    return files


def _code_in(folder: Path) -> list[Path]:
    """Return a folder's files, empty ones and what Python caches apart."""
    found = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return [path for path in found if path.stat().st_size]


def stage_module(command: str) -> str:
    """Return the module that a stage's command runs with `python -m`."""
    words = command.split()
    return words[words.index("-m") + 1]


def stage_bodies(graph: dict[str, Any]) -> dict[str, Any]:
    """Return stage name -> its body."""
    return dict(graph["stages"])


def code_deps(body: dict[str, Any]) -> list[str]:
    """Return the dependencies of a stage that are code, in order."""
    return [path for path in body["deps"] if path.split("/")[0] in PACKAGES]


def main(write: Annotated[bool, typer.Option(help="rewrite dvc.yaml")] = False) -> None:
    """Compare dvc.yaml with the import closures; exit 1 when it is out of date."""
    yaml = YAML()
    yaml.width = 120
    yaml.indent(mapping=2, sequence=4, offset=2)
    graph = yaml.load(GRAPH)
    stale = []
    for name, body in stage_bodies(graph).items():
        expected = collapse(closure(stage_module(body["cmd"])))
        if code_deps(body) != expected:
            stale.append(name)
            data = [path for path in body["deps"] if path not in code_deps(body)]
            body["deps"] = data + expected
    if write and stale:
        yaml.dump(graph, GRAPH)
    typer.echo(
        f"dvc.yaml: {'rewrote' if write else 'out of date'}: {', '.join(stale)}" if stale else "dvc.yaml: up to date"
    )
    raise typer.Exit(int(bool(stale) and not write))


def _names(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        yield node.module
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("pipeline."):
        yield node.value


def _strings(path: Path) -> set[str]:
    return {node.value for node in _nodes(path) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


@functools.cache
def _nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(path.read_text(), str(path))))


if __name__ == "__main__":
    typer.run(main)
