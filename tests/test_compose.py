"""Composing params.yaml: what merging does to values and comments, and that every recipe is right."""

from pathlib import Path

import pytest
from conftest import REPOSITORY
from rich.console import Console
from ruamel.yaml import YAML

from pipeline.check_params import load_experiment
from pipeline.errors import ParamsError
from tools.compose import compose, describe_recipe, dump, list_recipes, run

RECIPES = REPOSITORY / "recipes"

BASE = """\
# All settings.

# Where the clips come from.
corpus:
  kind: demo # made on the spot
  root: data/demo
  seed: 0

# How a model learns.
train:
  epochs: 20 # passes over the clips
  learning_rate: 1.0e-3 # at the peak
  schedule:
    warmup: 5
    # Lists are one value.
    milestones: [10, 15] # epochs

# What is shown.
report:
  examples: 3
"""


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "base.yaml").write_text(BASE)
    (folder / "demo.yaml").write_text("# The base as it is.\n")
    (folder / "wide.yaml").write_text("# Wider.\ncorpus:\n  kind: esc50\n  table: a.csv\n\n# of the recipe\n")
    return folder


def _text(recipe: str, overrides: list[str], recipes: Path) -> str:
    document, mistakes = compose(recipe, overrides, recipes)
    assert not mistakes
    return dump(document)


def test_an_empty_recipe_is_the_base_to_the_letter(recipes: Path) -> None:
    assert _text("demo", [], recipes) == BASE


def test_an_override_changes_its_own_line_alone(recipes: Path) -> None:
    changed = _text("demo", ["train.epochs=80"], recipes)
    assert changed == BASE.replace("epochs: 20", "epochs: 80")


def test_a_mapping_whose_kind_changes_is_replaced_and_the_next_heading_stays(recipes: Path) -> None:
    text = _text("wide", [], recipes)
    start, end = text.index("corpus:"), text.index("\n# How a model learns.\ntrain:")
    assert text[start:end] == "corpus:\n  kind: esc50\n  table: a.csv\n"
    assert text[end:] == BASE[BASE.index("\n# How a model learns.") :]


def test_a_mapping_of_the_same_kind_is_merged(recipes: Path) -> None:
    (recipes / "same.yaml").write_text("corpus: {kind: demo, seed: 7}\n")
    assert _text("same", [], recipes) == BASE.replace("seed: 0", "seed: 7")


@pytest.mark.parametrize(
    ("override", "before_heading"),
    [
        ("corpus.seed=7", "  seed: 7\n"),  # the last value of a section
        ("corpus.extra=1", "  seed: 0\n  extra: 1\n"),  # one more behind it
        ("corpus.seed=[1, 2]", "  seed: [1, 2]\n"),
        ("corpus.seed={a: 1}", "  seed: {a: 1}\n"),
    ],
)
def test_headings_stay_above_their_sections(override: str, before_heading: str, recipes: Path) -> None:
    assert f"{before_heading}\n# How a model learns.\ntrain:\n" in _text("demo", [override], recipes)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1e-4", 1e-4),
        ("1.0e-5", 1e-5),
        ("3", 3),
        ("true", True),
        ("yes", "yes"),  # YAML 1.1 would say True
        ("null", None),
        ("text", "text"),
        ('["1", "2"]', ["1", "2"]),
        ("a=b", "a=b"),
    ],
)
def test_overrides_are_yaml_1_2(value: str, expected: object, recipes: Path) -> None:
    document = YAML(typ="safe").load(_text("demo", [f"train.learning_rate={value}"], recipes))
    found = document["train"]["learning_rate"]
    assert found == expected
    assert type(found) is type(expected)


def test_overrides_that_cannot_be_read_are_all_named(recipes: Path) -> None:
    _, mistakes = compose("demo", ["train.epochs", "train..epochs=3", "train.epochs=[1"], recipes)
    assert ["'train.epochs'" in mistakes[0], "'train..epochs=3'" in mistakes[1], "'[1'" in mistakes[2]] == [True] * 3


def test_recipes_are_stacked_in_order(recipes: Path) -> None:
    (recipes / "low.yaml").write_text("corpus: {kind: esc50, table: b.csv}\n")
    document, _ = compose("wide+low", [], recipes)
    assert document["corpus"] == {"kind": "esc50", "table": "b.csv"}
    with pytest.raises(ParamsError, match=r"expected one of demo, low, wide .* found 'lwo'"):
        compose("wide+lwo", [], recipes)


def test_null_is_written_as_a_token(recipes: Path) -> None:
    assert "\n  seed: null\n" in _text("demo", ["corpus.seed=null"], recipes)


def test_an_unknown_recipe_names_the_known_ones(recipes: Path) -> None:
    with pytest.raises(ParamsError, match=r"expected one of demo, wide .* found 'train.epochs=3'"):
        compose("train.epochs=3", [], recipes)


@pytest.mark.parametrize("recipe", list_recipes(RECIPES))
def test_every_recipe_is_valid_and_says_what_it_is(recipe: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    run(recipe, [], recipes_path=RECIPES, params_path=path, console=Console(quiet=True))
    load_experiment(path)
    assert describe_recipe(RECIPES / f"{recipe}.yaml")


def test_composing_keeps_every_comment_and_space_of_the_base() -> None:
    assert _text("demo", [], RECIPES) == (RECIPES / "base.yaml").read_text()


def test_the_committed_params_are_the_demo() -> None:
    assert (REPOSITORY / "params.yaml").read_text() == _text("demo", [], RECIPES), "run `sonolex compose demo`"


def test_typos_are_all_named_and_the_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("train: {}\n")
    overrides = ["train.epoch=3", "vocabularies.kmeans.num_token=100", "trian.epochs=3", "oops"]
    with pytest.raises(ParamsError) as caught:
        run("demo", overrides, recipes_path=RECIPES, params_path=path, console=Console(quiet=True))
    message = str(caught.value)
    for expected in (
        "train.epoch: ",
        "`epochs`",
        "vocabularies.kmeans.num_token",
        "`num_tokens`",
        "trian",
        "`train`",
        "'oops'",
    ):
        assert expected in message
    assert f"{path}: " in message
    assert "partial" not in message
    assert path.read_text() == "train: {}\n"
    assert list(tmp_path.iterdir()) == [path]


def test_what_changed_is_printed(tmp_path: Path) -> None:
    console = Console(record=True, width=200, quiet=False, file=(tmp_path / "out").open("w"))
    path = tmp_path / "params.yaml"
    for overrides in ([], [], ["vocabularies.kmeans.seed=17"]):
        run("demo", overrides, recipes_path=RECIPES, params_path=path, console=console)
    written, same, changed, line = console.export_text().splitlines()
    assert "written" in written
    assert "nothing changed" in same
    assert "1 of" in changed
    assert line.split() == ["vocabularies.kmeans.seed", "0", "->", "17"]
