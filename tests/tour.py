"""Listing of every source file in docs/architecture.md, from the first lines of the modules' docstrings.

`python tests/tour.py` brings the page up to date; test_repo.py compares.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "architecture.md"
_FOLDERS = ("stages", "sonolex", "pipeline", "tools")
_WIDTH = 30  # of names and what is before them


def render(page: str) -> str:
    """Return the page with a line for each source file, below the lines that it has for folders."""
    lines = page.splitlines()
    headings = [(number, line.split()[0].rstrip("/")) for number, line in enumerate(lines) if _is_folder(line)]
    found, start = [], 0
    for number, name in headings:
        found += [
            line for line in lines[start : number + 1] if not line.split()[:1] or not line.split()[0].endswith(".py")
        ]
        folder = ROOT / (name if name in _FOLDERS else f"pipeline/{name}")
        if name != "pipeline":
            found += _files(folder, "  " if name in _FOLDERS else "    ")
        if name == _packages(lines)[-1]:
            found += [_line("  ", path, path.name) for path in sorted((ROOT / "pipeline").glob("[!_]*.py"))]
        start = number + 1
    found += [line for line in lines[start:] if not line.split()[:1] or not line.split()[0].endswith(".py")]
    return "\n".join(found) + "\n"


def _is_folder(line: str) -> bool:
    name = line.split()[0] if line.split() else ""
    return (name.rstrip("/") in _FOLDERS and name.endswith("/")) or (line.startswith("  ") and name.endswith("/"))


def _packages(lines: list[str]) -> list[str]:
    return [line.split()[0].rstrip("/") for line in lines if line.startswith("  ") and _is_folder(line)]


def _files(folder: Path, indent: str) -> Iterator[str]:
    own, below = sorted(folder.glob("*.py")), sorted(folder.glob("*/*.py"))
    for path in own + below:
        if path.name != "__init__.py":
            yield _line(indent, path, str(path.relative_to(folder)))


def _line(indent: str, path: Path, name: str) -> str:
    first = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0].split(". ")[0].removesuffix(".")
    return f"{indent}{name}".ljust(_WIDTH - 1) + f" {first}"


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text()))
