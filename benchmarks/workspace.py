"""Temporary workspaces for benchmarks: params.yaml composed from a recipe, and stages run alone or under DVC."""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.artifacts.layout import Layout
from tools.compose import compose, dump

ROOT = Path(__file__).parents[1]
SOURCES = (
    "pipeline",
    "sonolex",
    "stages",
    "tools",
    "recipes",
    "metadata",
    "dvc.yaml",
    ".dvcignore",
    ".gitignore",
    ".dvc/config",
    ".dvc/plots.html",
)


class Workspace:
    """A folder with a params.yaml and a corpus table, in which stages run."""

    def __init__(self, folder: Path, audio: Path, rows: Iterable[Mapping[str, str]], overrides: Sequence[str]) -> None:
        """Write the workspace; `rows` have path, label, fold, and optionally group, start, duration."""
        self.folder = folder
        folder.mkdir(parents=True)
        rows = list(rows)
        with (folder / "clips.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        group, start, duration = (name if name in rows[0] else "null" for name in ("group", "start", "duration"))
        corpus = (
            f"{{kind: table, root: {audio}, table: clips.csv, max_bad_fraction: 0.0, max_duration: 60.0, "
            f"path_column: path, labels_column: label, label_separator: null, label_kind: one, classes: null, "
            f"fold_column: fold, group_column: {group}, start_column: {start}, duration_column: {duration}, licence: none}}"
        )
        document, mistakes = compose("demo", [f"corpus={corpus}", *overrides], ROOT / "recipes")
        if mistakes:
            raise ValueError("\n".join(mistakes))
        (folder / "params.yaml").write_text(dump(document))

    def run(self, stage: str, *arguments: str) -> tuple[float, dict[str, Any]]:
        """Run `python -m stages.<stage>` here; return the seconds of the whole process, and the stage's own report."""
        reports = Layout(self.folder).stage_reports
        before = set(reports.glob("*.json"))
        for path in before:
            path.unlink()
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        started = time.perf_counter()
        done = subprocess.run(  # noqa: S603 - our own stages
            # On Linux a started program inherits this process's peak memory; a shell in between has a small one.
            ["/bin/sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-m", f"stages.{stage}", *arguments],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        seconds = time.perf_counter() - started
        if done.returncode:
            raise RuntimeError(f"stages.{stage} failed:\n{done.stderr[-4000:]}")
        written = sorted(reports.glob("*.json"))
        return seconds, json.loads(written[0].read_text()) if written else {}


def make_repository(workspace: Path, recipe: str, overrides: Sequence[str]) -> None:
    """Copy the project into a new repository, with the params of a recipe."""
    copy_project(workspace)
    run_in(workspace, "sonolex", "compose", recipe, *overrides)
    run_in(workspace, "git", "init", "-q")


def copy_project(folder: Path) -> None:
    """Copy the files of the graph into a folder, without params.yaml."""
    for name in SOURCES:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)


def run_in(workspace: Path, *command: str) -> None:
    """Run a command in a repository, with this environment's programs."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(workspace),
    }
    subprocess.run(command, cwd=workspace, env=environment, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
