"""Paths in params.yaml, which name the same file from wherever a stage runs.

`~` is the home folder of whoever runs; a relative path begins at the project's folder. DVC runs the experiments of
`dvc exp run --temp` and `--queue` in workspaces, `<project>/.dvc/tmp/exps/<name>`, that hold only what Git and DVC track:
audio, weights, the memo store and the index of content digests stay in the project, and all of its workspaces share them.
"""

import os
from pathlib import Path

from pipeline.errors import ParamsError

_EXPERIMENTS = (".dvc", "tmp", "exps")  # where DVC lays workspaces out, below the project's folder


def project_folder() -> Path:
    """Return the folder of the project whose folder, or experiment's workspace, is the current one."""
    here = Path.cwd()
    for depth in range(len(here.parts) - len(_EXPERIMENTS), 0, -1):
        if here.parts[depth : depth + len(_EXPERIMENTS)] == _EXPERIMENTS:
            return Path(*here.parts[:depth])
    return here


def expand_home(path: Path | str) -> Path:
    """Return the path with `~` expanded. Raises ParamsError for the home folder of an unknown user."""
    expanded = os.path.expanduser(path)  # noqa: PTH111 - Path.expanduser() raises RuntimeError
    if expanded.startswith("~"):
        raise ParamsError(f"expected behind ~ a user of this machine, found none called {Path(path).parts[0][1:]}")
    return Path(expanded)


def shared_path(path: Path | str) -> Path:
    """Return the absolute path of what the project keeps once for all workspaces."""
    return project_folder() / expand_home(path)


def input_path(path: Path | str) -> Path:
    """Return the absolute path of a file that is read: the workspace's own, which Git tracks, or else the project's."""
    own = Path.cwd() / expand_home(path)
    return own if own.exists() else shared_path(path)
