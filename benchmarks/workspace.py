"""Temporary workspaces for benchmarks: params.yaml composed from a recipe, and stages run alone or under DVC."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.processes import Usage, run_measured
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

    def __init__(
        self,
        folder: Path,
        audio: Path,
        rows: Iterable[Mapping[str, str]],
        overrides: Sequence[str],
        *,
        recipe: str = "demo",
        label_separator: str | None = None,
    ) -> None:
        """Write the workspace; `rows` have path, label, fold, and optionally group, start, duration.

        With a separator, a cell of labels holds any number of them.
        """
        self.folder = folder
        folder.mkdir(parents=True)
        rows = list(rows)
        with (folder / "clips.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        group, start, duration = (name if name in rows[0] else "null" for name in ("group", "start", "duration"))
        separator, label_kind = ("null", "one") if label_separator is None else (f"'{label_separator}'", "many")
        corpus = (
            f"{{kind: table, root: {audio}, table: clips.csv, max_bad_fraction: 0.0, max_duration: 60.0, path_column: "
            f"path, labels_column: label, label_separator: {separator}, label_kind: {label_kind}, classes: null, "
            f"fold_column: fold, group_column: {group}, start_column: {start}, duration_column: {duration}, licence: none}}"
        )
        document, mistakes = compose(recipe, [f"corpus={corpus}", *overrides], ROOT / "recipes")
        if mistakes:
            raise ValueError("\n".join(mistakes))
        (folder / "params.yaml").write_text(dump(document))

    def run(self, stage: str, *arguments: str) -> tuple[float, dict[str, Any]]:
        """Run `python -m stages.<stage>` here; return the seconds of the whole process, and the stage's own report."""
        usage, counters = self.measure(stage, *arguments)
        return usage.seconds, counters

    def measure(self, stage: str, *arguments: str) -> tuple[Usage, dict[str, Any]]:
        """Run `python -m stages.<stage>` here; return what the process and its workers took, and the stage's own report."""
        reports = Layout(self.folder).stage_reports
        before = set(reports.glob("*.json"))
        for path in before:
            path.unlink()
        # On Linux a started program inherits this process's peak memory; a shell in between has a small one.
        command = ["/bin/sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-m", f"stages.{stage}", *arguments]
        usage = run_measured(command, self.folder, os.environ | {"PYTHONPATH": str(ROOT)})
        written = sorted(reports.glob("*.json"))
        return usage, json.loads(written[0].read_text()) if written else {}


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
