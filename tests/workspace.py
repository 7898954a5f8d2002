"""The project copied into a repository of its own, with an experiment small enough to run as a whole; see conftest.py."""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import preforked
from ruamel.yaml import YAML

from benchmarks.workspace import copy_project
from pipeline.artifacts.layout import Layout

ROOT = Path(__file__).parent.parent
FOLDS = ["1"]  # one of the five: every stage of every model runs, once

# Half a second of ten classes, five clips each: what takes time is to start the programs.
SMALL: dict[str, Any] = {
    "experiment.folds": FOLDS,
    "corpus.clips_per_class": 5,
    "corpus.duration": 0.5,
    "spectrogram.front_end.n_mels": 24,
    "vocabularies.kmeans.num_tokens": 16,
    "train.epochs": 2,
    "models.ast.encoder.depth": 1,
    "models.token_transformer.encoder.depth": 1,
    "report.examples": 1,
    "report.worst": 1,
    "atlas.tokens": 4,
    "experiment.frame_models": ["ast", "frame_statistics"],
    "experiment.token_models": ["token_transformer", "bag_of_tokens"],
    "atlas.clips": 1,
}


def _set(document: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        document = document[section]
    document[last] = value


def change_params(workspace: Path, changes: dict[str, Any]) -> None:
    yaml = YAML()
    document = yaml.load(workspace / "params.yaml")
    for key, value in changes.items():
        _set(document, key, value)
    yaml.dump(document, workspace / "params.yaml")


PROGRAMS = {"dvc": ("python", "-m", "dvc"), "sonolex": ("python", "-m", "tools.sonolex")}


def run(workspace: Path, *command: str, check: bool = True, project: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a command in a workspace, with this environment's programs and no settings of the person's own.

    Python's programs, and those that they start, are forks of one that has imported heavy packages, and with `project` the
    project's modules too, as they are in this repository; see preforked.py.
    """
    environment = (
        os.environ
        | preforked.environment(project=project)
        | {
            "PYTHONPATH": str(workspace),
            "OMP_NUM_THREADS": "1",
            "DVC_NO_ANALYTICS": "1",
            "GIT_AUTHOR_NAME": "Tester",
            "GIT_AUTHOR_EMAIL": "tester@example.invalid",
            "GIT_COMMITTER_NAME": "Tester",
            "GIT_COMMITTER_EMAIL": "tester@example.invalid",
        }
    )
    program = (*PROGRAMS.get(command[0], command[:1]), *command[1:])
    done = subprocess.run(program, cwd=workspace, env=environment, capture_output=True, text=True, timeout=600)
    assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done


def make_workspace(path: Path) -> Path:
    """Copy the project into a repository of its own, with the small experiment committed."""
    path.mkdir()
    copy_project(path)
    shutil.copy(ROOT / "params.yaml", path)
    change_params(path, SMALL)
    run(path, "git", "init", "-q")
    run(path, "git", "add", ".")
    run(path, "git", "commit", "-qm", "the small experiment")
    return path


def finish(workspace: Path) -> Path:
    """Run everything and commit the results."""
    run(workspace, "dvc", "repro", "-q")
    run(workspace, "git", "add", ".")
    run(workspace, "git", "commit", "-qm", "its results")
    return workspace


def clone_workspace(workspace: Path, path: Path) -> Path:
    """Clone what git knows of a workspace: no artifact, no cache, no audio."""
    run(path.parent, "git", "clone", "-q", str(workspace), str(path))
    return path


def stage(workspace: Path, name: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run one stage's program, without DVC."""
    return run(workspace, "python", "-m", f"stages.{name}", *arguments, check=check)


def artifacts(workspace: Path) -> dict[str, str]:
    """Return path -> digest of every file that stages wrote; what they took (results/stages) apart."""
    layout = Layout(workspace)
    folders = (layout.data, layout.models, layout.predictions, layout.results, layout.page.parent)
    files = (file for folder in folders for file in folder.rglob("*") if file.is_file() and file.name != ".gitignore")
    return {
        str(file.relative_to(workspace)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(files)
        if not file.is_relative_to(layout.stage_reports)
    }


def stages_run(output: str) -> list[str]:
    """Return the stages that a `dvc repro` ran, in order, from what it printed."""
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


def stale(workspace: Path) -> set[str]:
    """Return the stages that `dvc status` calls changed, but for `code` and `corpus`, which always are."""
    status = json.loads(run(workspace, "dvc", "status", "--json").stdout)
    return {name for name, reasons in status.items() if reasons != ["always changed"]} - {"code"}
