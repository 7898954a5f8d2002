"""Optional packages that an experiment needs are named before anything runs, with the command that installs them."""

import re
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import REPOSITORY
from rich.console import Console
from typer.testing import CliRunner

from pipeline.check_params import load_experiment
from tools import compose
from tools.doctor import check_needs
from tools.package_check import PACKAGES, package_mistakes
from tools.sonolex import app

RECIPES = REPOSITORY / "recipes"
NEURAL = ["vocabularies.vq.kind=neural", "experiment.vocabularies=[kmeans, vq]"]
CASES = {
    "vector-quantize-pytorch": (
        NEURAL,
        r"vocabularies\.vq\.kind neural: .* pip install 'vector-quantize-pytorch>=1\.32' \(the extra sonolex\[neural\]\), "
        "or take another kind",
    ),
    "peft": (
        ["train.lora={rank: 2, alpha: 4, dropout: 0.0, targets: [qkv]}"],
        r"train\.lora: .* pip install 'peft>=0\.17' \(the extra sonolex\[lora\]\), or set it to null",
    ),
    "distributed": (
        ["execution.executor=dask", "execution.scheduler=tcp://host:8786"],
        r"execution\.executor dask: .* pip install 'distributed>=2025\.5' .* or set it to local",
    ),
    "dvclive": (
        ["launch.trackers=[dvclive]"],
        r"launch\.trackers dvclive: .* pip install 'dvclive>=3\.48' .* or remove",
    ),
    "tensorboard": (
        ["launch.trackers=[tensorboard]"],
        r"the package tensorboard, .* pip install 'tensorboard', or",
    ),
    "wandb": (["launch.trackers=[wandb]"], r"expected the package wandb, .* pip install 'wandb', or"),
    "mlflow": (["launch.trackers=[mlflow]"], r"expected the package mlflow, .* pip install 'mlflow', or"),
}


def _composed(folder: Path, *settings: str) -> tuple[Path, str]:
    """Write params of the demo with some settings; return their path, and what the command says."""
    path, console = folder / "params.yaml", Console(record=True, width=400, file=(folder / "said").open("w"))
    compose.run("demo", [f"corpus.root={folder}", *settings], recipes_path=RECIPES, params_path=path, console=console)
    return path, console.export_text()


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_that_is_missing_is_named_before_the_run(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, expected = CASES[package]
    monkeypatch.setitem(sys.modules, PACKAGES[package][0], None)
    path, said = _composed(tmp_path, *settings)
    result = CliRunner().invoke(app, ["check", "--params", str(path)])
    assert result.exit_code == 1
    assert re.search(expected, result.output), result.output
    assert re.search(f"note: .*{expected}", said), said
    (row,) = check_needs(load_experiment(path), path)
    assert (row.verdict, bool(re.search(expected, row.found))) == ("broken", True)


def test_what_the_experiment_does_not_use_needs_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, _, _ in PACKAGES.values():
        monkeypatch.setitem(sys.modules, module, None)
    classical = [
        *("experiment.frame_models=[frame_statistics]", "experiment.token_models=[bag_of_tokens]"),
        *("experiment.ensembles=[]", "report.headline=[frame_statistics]", "report.attention=[]"),
        *CASES["peft"][0],
        *CASES["wandb"][0],
    ]
    for settings in ((), NEURAL[:1], classical):
        path, said = _composed(tmp_path, *settings)
        assert package_mistakes(load_experiment(path), path) == []
        assert "note" not in said


def test_requirements_are_those_of_the_extras() -> None:
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for _, requirement, extra in PACKAGES.values():
        assert not extra or requirement in extras[extra]
