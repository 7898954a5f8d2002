"""The version of a computation: a digest of the definitions that its result follows from, and of nothing else.

From its roots (functions and classes) the names are followed through the project's modules, definition by definition, as
a compiler that drops dead code would. So a mended filter gives another version, while an edit elsewhere in the same file,
a comment, a docstring or a reformatted line gives the same. Modules outside the project count by their release.

Names are followed wherever they are mentioned, so the digest covers too much rather than too little. What is found only at
run time (an entry of a registry) is not followed: name it as a root.
"""

import ast
import functools
import hashlib
import importlib.metadata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_PROJECT = "pipeline"
_FOLDER = Path(__file__).parents[2]

# Releases of these can change numbers; those of a progress bar or a YAML reader cannot.
_NUMERIC = {name: name for name in ("numpy", "scipy", "soundfile", "soxr", "tokenizers", "zarr")}


def code_version(*roots: Any) -> str:
    """Return 16 hex digits for the code behind functions and classes of the project."""
    return version_of([(root.__module__, root.__qualname__.split(".")[0]) for root in roots])


def version_of(roots: list[tuple[str, str]], folder: Path = _FOLDER) -> str:
    """Return the version for roots given as (module, name), in the project that `folder` holds."""
    digest = hashlib.sha256()
    definitions, packages = reached(roots, folder)
    for (module, name), text in sorted(definitions.items()):
        digest.update(f"{module}\x1f{name}\x1f{text}\x1e".encode())
    for package in sorted(packages):
        digest.update(f"{package}=={importlib.metadata.version(package)}\x1e".encode())
    return digest.hexdigest()[:16]


def reached(roots: list[tuple[str, str]], folder: Path = _FOLDER) -> tuple[dict[tuple[str, str], str], set[str]]:
    """Return what roots follow from: (module, name) -> source without docstrings, and the numeric packages."""
    definitions: dict[tuple[str, str], str] = {}
    packages: set[str] = set()
    todo = list(roots)
    while todo:
        module, name = todo.pop()
        source = _module(module, folder)
        if (module, name) in definitions or source is None:
            continue
        if name not in source.definitions:  # imported there, as names are passed on
            todo += _targets(source.imports.get(name), packages, folder)
            continue
        nodes = source.definitions[name]
        definitions[module, name] = "\n".join(_bare(node) for node in nodes)
        for node in nodes:
            imports = source.imports | _imports(ast.walk(node))
            for mentioned, attribute in _mentions(node):
                if mentioned in imports:
                    todo += _targets(imports[mentioned], packages, folder, attribute)
                elif mentioned in source.definitions:
                    todo.append((module, mentioned))
    return definitions, packages


@dataclass
class _Module:
    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)  # top-level name -> its statements
    imports: dict[str, str] = field(default_factory=dict)  # name -> what it stands for: a.b or a.b:name


def _module(name: str, folder: Path) -> _Module | None:
    """Parse a module of the project; None for a package or a name that is no module."""
    path = folder.joinpath(*name.split(".")).with_suffix(".py")
    return _parse(path, path.stat().st_mtime_ns) if path.is_file() else None


@functools.cache
def _parse(path: Path, _mtime_ns: int) -> _Module:
    module = _Module()
    for node in ast.parse(path.read_text(encoding="utf-8"), str(path)).body:
        for name in _defined(node):
            module.definitions.setdefault(name, []).append(node)
    module.imports = _imports(iter(ast.parse(path.read_text(encoding="utf-8")).body))
    return module


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]


def _imports(nodes: Iterator[ast.AST]) -> dict[str, str]:
    found: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {(alias.asname or alias.name.split(".")[0]): alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {(alias.asname or alias.name): f"{node.module}:{alias.name}" for alias in node.names}
    return found


def _mentions(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield every name, with the attribute asked of it where there is one."""
    for child in ast.walk(node):
        if isinstance(child, ast.Attribute) and isinstance(child.value, ast.Name):
            yield child.value.id, child.attr
        elif isinstance(child, ast.Name):
            yield child.id, ""


def _targets(imported: str | None, packages: set[str], folder: Path, attribute: str = "") -> list[tuple[str, str]]:
    """Return the definitions behind an imported name; packages outside the project are added to `packages`."""
    if imported is None:
        return []
    module, _, name = imported.partition(":")
    top = module.split(".")[0]
    if top != _PROJECT:
        packages.update(filter(None, [_NUMERIC.get(top)]))
        return []
    submodule = f"{module}.{name}" if name else module
    if _module(submodule, folder) is not None and name:  # `from pipeline.training import augmentation`
        return [(submodule, attribute)] if attribute else []
    return [(module, name or attribute)] if name or attribute else []


def _bare(node: ast.stmt) -> str:
    """Return a statement's source without comments, docstrings and layout."""
    copy = ast.parse(ast.unparse(node))
    for child in ast.walk(copy):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            first = child.body[0] if child.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and len(child.body) > 1:
                child.body = child.body[1:]
    return ast.unparse(copy)
