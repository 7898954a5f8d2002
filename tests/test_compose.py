"""Composing params.yaml: what merging does to values and comments, what defaults fill in, and that every recipe is right."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
from conftest import REPOSITORY
from rich.console import Console
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from pipeline.check_params import load_experiment
from pipeline.errors import ParamsError
from pipeline.params import field_annotation, members, read_params, validate_params
from tools.compose import compose, describe_recipe, dump, list_recipes, open_composer, remarks_on_settings, run
from tools.kind_defaults import CHOICES, EVERY_KIND, KIND, PLACES, find_choice

RECIPES = REPOSITORY / "recipes"
QUIET = Console(quiet=True)

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

DEFAULTS = """\
# What each kind has.
corpora:
  demo:
    seed: 0
  esc50:
    table: meta.csv # below root

# The next section.
schedules:
  constant:
    warmup_steps: 0
"""


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "base.yaml").write_text(BASE)
    (folder / "defaults.yaml").write_text(DEFAULTS)
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


def test_a_mapping_whose_kind_changes_keeps_what_both_have_and_the_next_heading_stays(recipes: Path) -> None:
    text = _text("wide", [], recipes)
    start, end = text.index("corpus:"), text.index("\n# How a model learns.\ntrain:")
    assert text[start:end] == "corpus:\n  kind: esc50\n  root: data/demo\n  table: a.csv # below root\n"
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
    assert document["corpus"] == {"kind": "esc50", "root": "data/demo", "table": "b.csv"}
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
    assert remarks_on_settings(load_experiment(path), path, RECIPES) == []
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


def _run(path: Path, recipe: str, *overrides: str, force: bool = False) -> None:
    run(recipe, overrides, recipes_path=RECIPES, params_path=path, console=Console(quiet=True), force=force)


def test_changes_by_hand_are_not_overwritten_without_being_asked(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    _run(path, "demo", "train.epochs=3")
    assert path.read_text().startswith("# `sonolex compose demo train.epochs=3` wrote this file")
    _run(path, "demo")  # as it was composed
    edited = path.read_text().replace("epochs: 16", "epochs: 17")
    path.write_text(edited)
    with pytest.raises(
        ParamsError, match=r"changed by hand; .*--force, which keeps the old file as .*params\.yaml\.bak"
    ):
        _run(path, "demo")
    assert path.read_text() == edited
    _run(path, "demo", force=True)
    assert "epochs: 16" in path.read_text()
    assert (tmp_path / "params.yaml.bak").read_text() == edited


def test_the_committed_params_can_be_composed_over(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text((REPOSITORY / "params.yaml").read_text())
    _run(path, "demo", "train.epochs=3")
    path.write_text((REPOSITORY / "params.yaml").read_text() + "# mine\n")
    with pytest.raises(ParamsError, match="changed by hand"):
        _run(path, "demo")


def test_an_overlay_of_ones_own_is_merged_like_a_recipe(tmp_path: Path) -> None:
    own = tmp_path / "mine.yaml"
    own.write_text("# Longer.\ntrain:\n  epochs: 33\nmodels:\n  mine:\n    kind: network\n    encoder: {kind: lstm}\n")
    document, mistakes = compose(f"demo+{own}", ["train.batch_size=8"], RECIPES)
    assert not mistakes
    assert document["train"]["epochs"] == 33
    assert document["train"]["batch_size"] == 8
    assert document["models"]["mine"]["encoder"]["kind"] == "lstm"
    with pytest.raises(ParamsError, match=r"none\.yaml: expected an overlay of your own, found no such file"):
        compose(f"demo+{tmp_path}/none.yaml", [], RECIPES)


# Defaults of kinds

# Keys without a default: the person has them, or they follow from another setting. (section, kind or * for all) -> keys.
GIVEN: dict[tuple[str, str], dict[str, Any]] = {
    ("corpora", EVERY_KIND): {"root": "audio"},
    ("corpora", "mixtures"): {
        "source": {"kind": "demo", "root": "audio", "max_bad_fraction": 0.0, "max_duration": 60.0, "clips_per_class": 5}
        | {"duration": 1.0, "seed": 0}
    },
    ("corpora", "pattern"): {"pattern": "(?P<label>.*)"},
    ("corpora", "table"): {"table": "clips.csv"},
    ("checkpoint_formats", EVERY_KIND): {"source": "weights.pth"},
    ("front_ends", "waveform_encoder"): {"source": "facebook/wav2vec2-base"},
    ("averages", "epochs"): {"first": 2, "last": 3},
    ("vocabularies", "external"): {"table": "tokens.parquet", "num_tokens": 1024, "codebooks": 8, "frame_rate": 75.0},
}
DOCUMENT = read_params(RECIPES / "defaults.yaml")


def _kinds(section: str) -> Mapping[str, Mapping[str, Any]]:
    choice = find_choice(CHOICES[section])
    assert choice
    assert choice.section == section
    return choice.kinds


@pytest.mark.parametrize(("section", "kind"), [(section, kind) for section in CHOICES for kind in _kinds(section)])
def test_every_kind_has_defaults_that_are_right(section: str, kind: str) -> None:
    filled = open_composer(RECIPES).complete(CommentedMap({KIND: kind}), CHOICES[section])
    given = GIVEN.get((section, EVERY_KIND), {}) | GIVEN.get((section, kind), {})
    assert not given.keys() & filled.keys(), "a default that the person must give"
    validate_params(CHOICES[section], {**filled, **given}, section)


def test_every_default_is_of_a_key_that_its_kind_has() -> None:
    assert set(DOCUMENT) == set(CHOICES)
    for section, kinds in DOCUMENT.items():
        known = _kinds(section)
        assert set(kinds) - {EVERY_KIND} <= set(known), section
        for kind, defaults in kinds.items():
            for key in defaults:
                having = [name for name in known if key in known[name]]
                assert kind in having or (kind == EVERY_KIND and len(having) > 1), f"{section}.{kind}.{key}"


def test_every_choice_of_params_has_a_section_of_defaults() -> None:
    left, chosen = list(PLACES.values()), set()
    while left:
        place = left.pop()
        for form in members(place):
            fields: dict[str, Any] = getattr(form, "model_fields", {})
            if KIND in fields:
                choice = find_choice(place)
                assert choice, form
                chosen.add(choice.section)
            left += [field_annotation(field) for field in fields.values()] or get_args(form)
    assert chosen == set(CHOICES)


def _compose(*overrides: str, recipe: str = "demo") -> Any:
    return YAML(typ="safe").load(_text(recipe, list(overrides), RECIPES))


def test_a_new_entry_has_the_defaults_of_the_kind_that_entries_have() -> None:
    document = _compose("vocabularies.small.num_tokens=64", "models.mine.encoder.kind=conformer")
    assert document["vocabularies"]["small"] == document["vocabularies"]["kmeans"] | {"num_tokens": 64}
    assert document["models"]["mine"] == document["models"]["conformer"]


def test_a_table_corpus_needs_its_root_and_its_table() -> None:
    corpus = _compose("corpus.root=W", "corpus.table=W/clips.csv", recipe="table")["corpus"]
    assert (corpus["root"], corpus["table"], corpus["label_kind"]) == ("W", "W/clips.csv", "one")
    assert corpus == _compose("corpus.kind=table", "corpus.root=W", "corpus.table=W/clips.csv")["corpus"]


@pytest.mark.parametrize(
    ("overrides", "place", "kept", "gone"),
    [
        (["corpus.kind=esc50"], "corpus", {"root": "audio/demo", "max_bad_fraction": 0.2}, {"seed", "duration"}),
        (["spectrogram.front_end.kind=mel"], "spectrogram.front_end", {"n_mels": 40}, {"pre_emphasis"}),
        (["vocabularies.kmeans.kind=bands"], "vocabularies.kmeans", {"num_tokens": 32}, set()),
        (["models.ast.encoder.kind=lstm"], "models.ast.encoder", {"width": 96}, {"heads", "mlp_ratio"}),
        # `channels` and `frames` mean something else there: the kinds' defaults differ
        (["models.ast.stem.kind=convolution_1d"], "models.ast.stem", {"channels": [128], "strides": [2]}, set()),
        (["models.mlp.stem.kind=patches"], "models.mlp.stem", {"frames": 16}, set()),
        (["models.ast.kind=texture_statistics"], "models.ast", {"input": {"kind": "frames"}}, {"stem", "head"}),
    ],
)
def test_another_kind_keeps_what_means_the_same(
    overrides: list[str], place: str, kept: dict[str, Any], gone: set[str], tmp_path: Path
) -> None:
    folder = shutil.copytree(RECIPES, tmp_path / "recipes")
    (folder / "mine.yaml").write_text(
        "# Other values than the defaults'.\n"
        "corpus: {max_bad_fraction: 0.2}\nspectrogram: {front_end: {n_mels: 40}}\n"
        "vocabularies: {kmeans: {num_tokens: 32}}\nmodels: {ast: {encoder: {width: 96}}}\n"
    )
    section: Any = YAML(typ="safe").load(_text("mine", overrides, folder))
    for key in place.split("."):
        section = section[key]
    assert {key: section[key] for key in kept} == kept
    assert not gone & section.keys()


def test_settings_by_hand_may_come_in_any_order() -> None:
    overrides = [
        "corpus.kind=table",
        "corpus.table=t.csv",
        "corpus.max_bad_fraction=0.3",
        "models.ast.encoder.kernel=9",
    ]
    overrides += ["models.ast.encoder.kind=conformer"]
    document = _compose(*overrides)
    assert document == _compose(*reversed(overrides))
    assert document["corpus"]["max_bad_fraction"] == 0.3
    assert document["models"]["ast"]["encoder"]["kernel"] == 9


def test_defaults_bring_their_comments_and_given_values_theirs(recipes: Path) -> None:
    (recipes / "own.yaml").write_text("# Own.\ncorpus: # where they are\n  kind: esc50\n  root: a # here\n")
    text = _text("own", [], recipes)
    assert (
        "\ncorpus: # where they are\n  kind: esc50\n  root: a # here\n  table: meta.csv # below root\n\n# How" in text
    )


def test_weights_to_start_from_are_never_guessed(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"models\.ast\.pretrained"):
        run("demo", ["models.ast.pretrained.source=x"], recipes_path=RECIPES, params_path=tmp_path / "p", console=QUIET)


@pytest.mark.parametrize("name", ["esc10", "ESC-10"])
def test_esc10_is_said_to_be_a_table_of_esc50(name: str) -> None:
    with pytest.raises(ParamsError, match=r"`sonolex compose esc50 corpus\.root=PATH corpus\.table=meta/esc10\.csv`"):
        compose(name, [], RECIPES)


def test_a_folder_without_recipes_is_named(tmp_path: Path) -> None:
    (tmp_path / "demo.yaml").touch()
    with pytest.raises(ParamsError, match=r"base\.yaml: expected a file, found none"):
        compose("demo", [], tmp_path)
