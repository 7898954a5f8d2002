"""Resolution of paths in params.yaml, independent of the folder in which a stage runs.

`~` is the user's home folder; relative paths start at the project's folder. DVC runs the experiments of `dvc exp run --temp`
and `--queue` in workspaces, `<project>/.dvc/tmp/exps/<name>`, that hold only what Git and DVC track: audio, weights, the
memo store and the index of content digests stay in the project, and all of its workspaces share them.
"""

import os
from pathlib import Path

from pipeline.errors import ParamsError

_EXPERIMENTS = (".dvc", "tmp", "exps")  # DVC's folder of workspaces, below the project's folder


def project_folder() -> Path:
    """Return the project's folder; the current folder is this one or an experiment's workspace."""
    here = Path.cwd()
    for depth in range(len(here.parts) - len(_EXPERIMENTS), 0, -1):
        if here.parts[depth : depth + len(_EXPERIMENTS)] == _EXPERIMENTS:
            return Path(*here.parts[:depth])
    return here


def workspaces_folder() -> Path:
    """Return the folder for workspaces of this project; in a folder there, paths in params.yaml mean what they mean here."""
    return project_folder().joinpath(*_EXPERIMENTS)


def expand_home(path: Path | str) -> Path:
    """Return the path with `~` expanded. Raises ParamsError for the home folder of an unknown user."""
    expanded = os.path.expanduser(path)  # noqa: PTH111 - Path.expanduser() raises RuntimeError
    if expanded.startswith("~"):
        raise ParamsError(f"expected a user of this machine after ~, found no user {Path(path).parts[0][1:]}")
    return Path(expanded)


def shared_path(path: Path | str) -> Path:
    """Return the absolute path of a file or folder that all workspaces of the project share."""
    return project_folder() / expand_home(path)


def input_path(path: Path | str) -> Path:
    """Return the absolute path of an input file: the workspace's, if Git tracks it there, or else the project's."""
    own = Path.cwd() / expand_home(path)
    return own if own.exists() else shared_path(path)
