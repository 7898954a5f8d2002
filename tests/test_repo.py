"""The house itself: who may import whom, and that dvc.yaml lists exactly what each stage runs."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.experiment import SECTIONS
from tools.closure import closure, code_deps, collapse, expand, imports_of, stage_module

ROOT = Path(__file__).parent.parent
GRAPH = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]

# Each wing may import itself and those behind it.
WINGS = (
    "reporting",
    "evaluation",
    "training",
    "models",
    "vocabulary",
    "spectrogram",
    "corpora",
    "execution",
    "artifacts",
)


def _wing(module: str) -> str:
    return module.split(".")[1] if module.count(".") else ""


@pytest.mark.parametrize(
    "path", sorted((ROOT / "pipeline").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_imports_run_downward(path: Path) -> None:
    parts = path.relative_to(ROOT).parts
    imported = {name for name in imports_of(path) if name != "pipeline"}
    assert not {name for name in imported if name.split(".")[0] in ("stages", "tools")}
    if (
        len(parts) == 2
    ):  # the ground, but for experiment.py, which gathers every section from above, and what names models
        allowed = {"experiment.py": set(WINGS), "experiment_params.py": {"artifacts"}}.get(parts[1], set())
    else:
        allowed = set(WINGS[WINGS.index(parts[1]) :])
    ground = {"errors", "params", "seeding", "experiment_params"}
    assert {_wing(name) for name in imported} <= allowed | ground


@pytest.mark.parametrize("stage", GRAPH)
def test_dvc_yaml_lists_the_modules_that_a_stage_runs(stage: str) -> None:
    body = GRAPH[stage]
    expected = closure(stage_module(body["cmd"]))
    assert expand(code_deps(body)) == expected, "run `make deps`"
    assert code_deps(body) == collapse(expected), "run `make deps`"


@pytest.mark.parametrize("stage", [name for name, body in GRAPH.items() if "matrix" in body])
def test_an_item_of_a_matrix_writes_what_its_command_names(stage: str) -> None:
    for out in GRAPH[stage]["outs"]:
        assert out in GRAPH[stage]["cmd"].split()


def test_closure_follows_imports_inside_functions_and_registries() -> None:
    files = closure("stages.train")
    assert "pipeline/training/loop.py" in files  # imported inside run()
    assert "pipeline/models/bag_of_tokens.py" in files  # named in a registry
    assert "pipeline/reporting/page.py" not in files


def test_stage_names_are_params_sections() -> None:
    known = {*SECTIONS, "models", "vocabularies"}
    for body in GRAPH.values():
        assert {str(name).split(".")[0] for name in body.get("params", [])} <= known


@pytest.mark.parametrize("path", sorted((ROOT / "stages").glob("*.py")), ids=lambda path: path.name)
def test_stages_stay_thin(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 120


def test_init_files_are_empty() -> None:
    """What stood in one would be a dependency of every stage that touches its wing; registries have their own files."""
    for path in (ROOT / "pipeline").rglob("__init__.py"):
        assert not path.read_text(), path


def test_the_readme_gives_every_file_a_line() -> None:
    tour = (ROOT / "README.md").read_text().split("## A tour of the tree")[1]
    for folder in ("pipeline", "stages", "tools"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.name != "__init__.py":
                assert f" {path.name} " in tour, path
