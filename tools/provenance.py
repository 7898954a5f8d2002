"""Records of what a model was made from, as far as they are at hand: commit of Git, dvc.lock, releases of packages."""

import hashlib
import json
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

from ruamel.yaml import YAML

from pipeline.artifacts.files import file_digest
from pipeline.artifacts.layout import Layout, RunId
from pipeline.execution.code import NUMERIC, releases

LOCK = "dvc.lock"
COMMIT = "commit"


def installed_releases() -> dict[str, str]:
    """Return the releases of Sonolex and of the numeric packages that are installed."""
    found = {"sonolex": version("sonolex")}
    for package in NUMERIC:
        found |= releases(package)
    return found


def made_from(folder: Path) -> dict[str, str]:
    """Return the commit of a project, `-dirty` where files differ from it, and the digest of its dvc.lock."""
    found = {COMMIT: _commit(folder)}
    lock = folder / LOCK
    return {
        name: value for name, value in (found | {LOCK: file_digest(lock) if lock.exists() else ""}).items() if value
    }


def training_releases(layout: Layout, run: RunId) -> dict[str, str]:
    """Return the releases of the numeric packages that a run was trained with; none where they are not recorded.

    The stage `code` writes the present ones; they are those of the training where dvc.lock names the same file.
    """
    code, lock = layout.code / "train" / run.model.entry, layout.root / LOCK
    if not code.exists() or not lock.exists():
        return {}
    stages = YAML(typ="safe").load(lock)["stages"]
    content = code.read_bytes()
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()  # DVC's
    path = code.relative_to(layout.root).as_posix()
    recorded = [dep for dep in stages.get(run.stage("train"), {}).get("deps", []) if dep["path"] == path]
    packages: dict[str, str] = json.loads(content)["packages"]
    return packages if [dep["md5"] for dep in recorded] == [digest] else {}


def _commit(folder: Path) -> str:
    git = shutil.which("git")
    if git is None:
        return ""
    command = [git, "-C", str(folder.absolute()), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - no shell, fixed arguments
    return done.stdout.strip() if done.returncode == 0 else ""
