"""Settings of models and vocabularies without effect are named where they differ from their default."""

from pathlib import Path

import pytest
from conftest import REPOSITORY
from rich.console import Console
from typer.testing import CliRunner

from tools.compose import run
from tools.idle_settings import IDLE
from tools.kind_defaults import CHOICES, PLACES
from tools.sonolex import app

RECIPES = REPOSITORY / "recipes"
FSQ = "vocabularies.kmeans={kind: neural, quantiser: fsq, levels: [8, 6, 5], num_tokens: 240%s}"
TEXTURES = "models.frame_texture_transformer.stem"
CASES = {
    ("vocabularies", "neural", "commitment"): (FSQ, ", commitment: 0.5", "vocabularies.kmeans.commitment"),
    ("vocabularies", "neural", "codebook_dim"): (FSQ, ", codebook_dim: 8", "vocabularies.kmeans.codebook_dim"),
    ("models", "texture_statistics", "mixture_gain"): (
        "models.frame_textures={kind: texture_statistics, mixtures: 0%s}", ", mixture_gain: 1.0",
        "models.frame_textures.mixture_gain",
    ),
    ("inputs", "frames", "std_scale"): (
        "models.ast.input={kind: frames, normalisation: none%s}", ", std_scale: 2.0", "models.ast.input.std_scale",
    ),
    ("inputs", "tokens", "embedding_width"): (
        "models.token_transformer.input={kind: tokens, embedding: centroids%s}", ", embedding_width: 32",
        "models.token_transformer.input.embedding_width",
    ),
    ("stems", "textures", "hop"): (TEXTURES + "={kind: textures, window: null%s}", ", hop: 0.25", f"{TEXTURES}.hop"),
    **{
        ("heads", kind, "dropout"): (
            f"models.{model}.head={{kind: {kind}, hidden: []%s}}", ", dropout: 0.5", f"models.{model}.head.dropout"
        )
        for kind, model in (("deep", "ast"), ("per_class", "ast"), ("flatten", "mlp"))
    },
}  # fmt: skip


def _said(folder: Path, *settings: str) -> tuple[str, str]:
    """Return what `compose` and `check` say of the demo with some settings."""
    path, console = folder / "params.yaml", Console(record=True, width=400, file=(folder / "said").open("w"))
    models = "experiment.frame_models=[ast, frame_textures, frame_texture_transformer, mlp]"
    run("demo", [models, *settings], recipes_path=RECIPES, params_path=path, console=console)
    checked = CliRunner().invoke(app, ["check", "--params", str(path), "--recipes", str(RECIPES)])
    return console.export_text(), checked.output


def test_every_rule_is_tried() -> None:
    assert {(idle.section, idle.kind, key) for idle in IDLE for key in idle.keys} == set(CASES)
    assert {idle.section for idle in IDLE} <= set(CHOICES)
    assert {"vocabularies", "models"} <= set(PLACES)


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_setting_without_effect_is_named(case: tuple[str, str, str], tmp_path: Path) -> None:
    setting, idle, where = CASES[case]
    for said in _said(tmp_path, setting % idle):
        (line,) = [line for line in said.splitlines() if "no effect" in line]
        assert f"note: {where}: expected its default, " in line
    for said in _said(tmp_path, setting % ""):
        assert "no effect" not in said


def test_entries_that_the_experiment_has_not_are_not_remarked(tmp_path: Path) -> None:
    for said in _said(tmp_path, FSQ.replace("kmeans", "other") % ", commitment: 0.5"):
        assert "no effect" not in said
