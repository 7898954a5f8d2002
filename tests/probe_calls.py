"""Run a module as a program and write which of the project's functions were called; see test_reach.py.

python tests/probe_calls.py calls.txt stages.train ast --fold 1 --seed 0
"""

import inspect
import runpy
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

FOLDER = Path.cwd()
PROJECT = ("pipeline", "stages")

calls: set[tuple[str, str]] = set()
seen: set[int] = set()


def note(frame: FrameType, event: str, _argument: Any) -> None:
    code = frame.f_code
    if event != "call" or id(code) in seen:
        return
    seen.add(id(code))
    path = Path(code.co_filename)
    # Bodies of modules and classes run when they are imported, with the generators in them; what they define is no call.
    at_import = not code.co_flags & inspect.CO_OPTIMIZED or code.co_qualname == "<genexpr>"
    if path.is_relative_to(FOLDER) and not at_import:
        parts = path.relative_to(FOLDER).with_suffix("").parts
        if parts[0] in PROJECT:
            calls.add((".".join(parts), code.co_qualname.split(".")[0]))


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
