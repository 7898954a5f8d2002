"""Run a module as a program and write which of the project's functions were called; see test_reach.py.

python tests/probe_calls.py calls.txt stages.train ast --fold 1 --seed 0
"""

import ast
import inspect
import runpy
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

FOLDER = Path.cwd()
PROJECT = ("pipeline", "stages")
COMPREHENSIONS = ("<genexpr>", "<listcomp>", "<setcomp>", "<dictcomp>")

calls: set[tuple[str, str]] = set()
seen: set[int] = set()


def note(frame: FrameType, event: str, _argument: Any) -> None:
    code = frame.f_code
    if event != "call" or id(code) in seen:
        return
    seen.add(id(code))
    path = Path(code.co_filename)
    # Bodies of modules and classes run when they are imported, with the comprehensions in them; what they define is no call.
    at_import = not code.co_flags & inspect.CO_OPTIMIZED or code.co_qualname in COMPREHENSIONS
    if path.suffix == ".py" and path.is_relative_to(FOLDER) and not at_import:  # templates compile to code too
        parts = path.relative_to(FOLDER).with_suffix("").parts
        if parts[0] in PROJECT:
            name = code.co_qualname.split(".")[0]
            calls.add((".".join(parts), constant_at(path, code.co_firstlineno) if name == "<lambda>" else name))


def constant_at(path: Path, line: int) -> str:
    """Return the module's constant whose value holds the lambda of that line."""
    for node in ast.parse(path.read_text()).body:
        if node.lineno <= line <= (node.end_lineno or 0):
            target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
            if isinstance(target, ast.Name):
                return target.id
    return "<lambda>"


if __name__ == "__main__":
    out, module, *arguments = sys.argv[1:]
    sys.argv = [module, *arguments]
    sys.path.insert(0, str(FOLDER))
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise
    finally:
        sys.setprofile(None)
        Path(out).write_text("".join(f"{module}:{name}\n" for module, name in sorted(calls)))
