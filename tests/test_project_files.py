"""Files that other programs read: licence, citation, hooks and CI agree with pyproject.toml, the Makefile and `.ci/run`."""

import hashlib
import os
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"  # SHA-256 of the published text


def read_yaml(name: str) -> Any:
    return YAML(typ="safe").load(ROOT / name)


def test_the_licence_is_the_complete_text_that_pyproject_names() -> None:
    assert PROJECT["license"] == "Apache-2.0"
    assert PROJECT["license-files"] == ["LICENSE"]
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2


def test_the_citation_agrees_with_pyproject() -> None:
    citation = read_yaml("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in PROJECT["authors"]]
    assert all(citation[key] for key in ("message", "title", "abstract", "keywords"))
    for reference in citation["references"]:
        assert reference["type"]
        assert reference["title"]
        assert all(author["family-names"] for author in reference["authors"])
        assert re.fullmatch(r"10\.\d{4,}/\S+", reference["doi"])


def test_hooks_run_the_commands_of_make_check() -> None:
    (repository,) = read_yaml(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"  # another would be downloaded
    assert {hook["language"] for hook in repository["hooks"]} == {"system"}
    assert not any(hook["pass_filenames"] for hook in repository["hooks"])
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe
    assert [hook["entry"] for hook in repository["hooks"]] == [line.strip() for line in recipe[1].splitlines()]


def test_ci_runs_its_script_with_read_access_and_enough_time() -> None:
    workflow = read_yaml(".github/workflows/ci.yml")
    assert workflow["permissions"] == {"contents": "read"}
    (job,) = workflow["jobs"].values()
    assert "permissions" not in job
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands == [".ci/run"]
    assert os.access(ROOT / ".ci/run", os.X_OK)
    (limit,) = re.findall(r"^limit=(\d+)", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert job["timeout-minutes"] * 60 > int(limit)
    (python,) = (step["with"]["python-version"] for step in job["steps"] if "setup-python" in step.get("uses", ""))
    assert python == "3.11"


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "CHANGELOG.md", "README.md"])
def test_relative_links_lead_to_files(name: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)", (ROOT / name).read_text()):
        assert "://" in target or (ROOT / target).exists(), target


def test_make_targets_in_the_guide_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {shlex.split(text)[1] for text in re.findall(r"`(make [a-z-]+)`", (ROOT / "CONTRIBUTING.md").read_text())}
    assert named
    assert named <= targets
