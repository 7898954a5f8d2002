"""Params: every mistake at once, each with its key, and numbers that stay numbers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pytest
from pydantic import Field, PositiveFloat, PositiveInt

from pipeline.check_params import SECTIONS
from pipeline.errors import ParamsError
from pipeline.models.registry import BASELINES, NETWORKS
from pipeline.params import Params, load_params
from pipeline.registry import RegistryParams
from pipeline.vocabulary.registry import VocabularyParams


class Disc(Params):
    kind: Literal["disc"]
    radius: PositiveFloat


class Square(Params):
    kind: Literal["square"]
    side: PositiveInt


class Drawing(Params):
    shape: Annotated[Disc | Square, Field(discriminator="kind")]
    rate: PositiveFloat


def _write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    return path


def test_loads_a_section_and_reads_1e_minus_4_as_a_number(tmp_path: Path) -> None:
    path = _write(tmp_path, "drawing: {shape: {kind: disc, radius: 2}, rate: 1e-4}")
    drawing = load_params(Drawing, "drawing", path)
    assert drawing.rate == 1e-4
    assert drawing.shape == Disc(kind="disc", radius=2)


def test_names_every_mistake_at_once_with_its_key(tmp_path: Path) -> None:
    path = _write(tmp_path, "drawing: {shape: {kind: square, sid: 3}, rate: 0, colour: red}")
    with pytest.raises(ParamsError) as caught:
        load_params(Drawing, "drawing", path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert any("drawing.shape.side: field required, found no value" in line for line in lines)
    assert any("drawing.shape.sid: unknown key; did you mean `side`? known keys: kind, side" in line for line in lines)
    assert any("drawing.rate: input should be greater than 0, found 0" in line for line in lines)
    assert any("drawing.colour: unknown key; known keys: shape, rate" in line for line in lines)


def test_names_the_known_kinds(tmp_path: Path) -> None:
    path = _write(tmp_path, "drawing: {shape: {kind: circle}, rate: 1}")
    with pytest.raises(ParamsError, match=r"drawing\.shape\.kind: expected one of disc, square, found 'circle'$"):
        load_params(Drawing, "drawing", path)


@pytest.mark.parametrize(
    ("drawing", "expected"),
    [
        ("{shape: {side: 3}, rate: 1}", "drawing.shape.kind: expected one of disc, square, found none"),
        ("{shape: 3, rate: 1}", "drawing.shape: expected a mapping of keys, as recipes/base.yaml has it, found 3"),
        ("{shape: {kind: disc, radius: {a: 1}}, rate: 1}", "drawing.shape.radius: .* found a mapping with a"),
        ("{shape: {kind: disc, radius: [[1], [2]]}, rate: 1}", "drawing.shape.radius: .* found a list of 2"),
        ("{shape: {kind: disc, radius: [1, 2]}, rate: 1}", r"drawing.shape.radius: .* found \[1, 2\]"),
        (
            "{shape: {kind: disc}, rate: 1}",
            "drawing.shape.radius: .*`sonolex compose RECIPE drawing.shape.radius=VALUE`",
        ),
        ("[1]", r"drawing: expected a mapping of keys, as recipes/base.yaml has it, found \[1\]"),
    ],
)
def test_no_message_ends_in_a_dumped_mapping(drawing: str, expected: str, tmp_path: Path) -> None:
    path = _write(tmp_path, f"drawing: {drawing}")
    with pytest.raises(ParamsError, match=f"{expected}$"):
        load_params(Drawing, "drawing", path)


def test_a_number_where_text_is_listed_shows_how_to_write_it(tmp_path: Path) -> None:
    class Grid(Params):
        folds: list[str]

    path = _write(tmp_path, "experiment: {folds: [9]}")
    with pytest.raises(
        ParamsError, match=r"""experiment\.folds\.0: .* in quotes, \["9"\], .*'experiment.folds=\["9"\]'$"""
    ):
        load_params(Grid, "experiment", path)


def test_strict_about_types(tmp_path: Path) -> None:
    path = _write(tmp_path, "drawing: {shape: {kind: square, side: 3.5}, rate: '0.1'}")
    with pytest.raises(ParamsError, match=r"(?s)shape\.side.*found 3\.5.*rate.*found '0\.1'"):
        load_params(Drawing, "drawing", path)


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan"])
def test_infinite_numbers_are_refused(tmp_path: Path, value: str) -> None:
    path = _write(tmp_path, f"drawing: {{shape: {{kind: disc, radius: {value}}}, rate: 1.0}}")
    with pytest.raises(ParamsError, match=r"drawing\.shape\.radius: input should be a finite number"):
        load_params(Drawing, "drawing", path)


def test_a_missing_section_names_the_sections_there_are(tmp_path: Path) -> None:
    path = _write(tmp_path, "drawing: {}")
    with pytest.raises(ParamsError, match="drawings: expected a section of this name, found only: drawing"):
        load_params(Drawing, "drawings", path)


@pytest.mark.parametrize(("text", "found"), [(None, "found none"), ("a: [", "syntax error"), ("- 1", "found list")])
def test_a_file_that_is_no_params_file(tmp_path: Path, text: str | None, found: str) -> None:
    path = tmp_path / "params.yaml" if text is None else _write(tmp_path, text)
    with pytest.raises(ParamsError, match=found):
        load_params(Drawing, "drawing", path)


def keys_of(annotation: Any, section: str) -> Iterator[str]:
    """Yield every key below a section, at any depth, in dots; those of all members of a union."""
    if isinstance(annotation, RegistryParams):
        for member in annotation.members:
            yield from keys_of(member, section)
    elif isinstance(annotation, type) and issubclass(annotation, Params):
        for name, field in annotation.model_fields.items():
            yield f"{section}.{name}"
            for part in (field.annotation, *field.metadata):
                yield from keys_of(part, f"{section}.{name}")
    else:  # the parts of Annotated, of a union, of a list or a mapping
        for part in get_args(annotation):
            yield from keys_of(part, section)


def test_keys_are_found_at_any_depth() -> None:
    class Gallery(Params):
        rooms: dict[str, list[Drawing] | None]

    assert list(keys_of(Gallery, "g")) == [
        "g.rooms", "g.rooms.shape", "g.rooms.shape.kind", "g.rooms.shape.radius",
        "g.rooms.shape.kind", "g.rooms.shape.side", "g.rooms.rate",
    ]  # fmt: skip


def test_no_key_is_one_that_the_run_cache_of_dvc_drops() -> None:
    # dvc/stage/cache.py, _get_cache_hash: entries with these names are left out at any depth, so that a changed value
    # finds the outputs of the old one.
    sections = SECTIONS | {"vocabularies.*": VocabularyParams}
    kinds = {**BASELINES, **NETWORKS}
    sections |= {f"models.<{kind}>": model.Params for kind, model in kinds.items()}
    keys = {key for section, annotation in sections.items() for key in keys_of(annotation, section)}
    assert {"vocabularies.*.features.stack", "spectrogram.front_end.n_mels", "models.<network>.encoder.depth"} <= keys
    assert [key for key in sorted(keys) if key.rsplit(".", 1)[1] in ("size", "nfiles")] == []
