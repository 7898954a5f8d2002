"""Loading and validation of sections of params.yaml as typed, frozen objects; no section is defined here.

A section's class is defined in the module that uses it. Classes have no defaults: a value missing from params.yaml is an
error, so that there is one place to read. A comment after each field gives its unit.
"""

import difflib
import re
import types
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer, Tag, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.errors import ParamsError, spell
from pipeline.paths import expand_home, input_path, shared_path
from pipeline.registry import RegistryParams

PARAMS_PATH = Path("params.yaml")

T = TypeVar("T")


SAFE_NAME = "at most 64 letters, digits, _ and -, not starting with -"  # for messages


def is_safe_name(text: str) -> bool:
    """Return whether a text may be part of paths and commands."""
    return re.fullmatch(r"(?!-)[A-Za-z0-9_-]{1,64}", text) is not None


def _require_name(text: str) -> str:
    if not is_safe_name(text):
        raise ValueError(f"expected a name of {SAFE_NAME}, since it becomes part of paths and commands (rename it)")
    return text


def _require_tracked(path: Path) -> Path:
    if path.parts and path.parts[0].startswith("~"):
        raise ValueError(f"expected a path without ~, since DVC reads it as it stands; write {expand_home(path)}")
    return path


# Name of an entry, a fold or an ensemble, which dvc.yaml inserts into paths and commands.
NameParam = Annotated[str, AfterValidator(_require_name)]

# Paths, see `pipeline/paths.py`, given as text in YAML. A dumped path is reduced to its last component, since results do not
# depend on where a file lies.
_Path = Annotated[Path, Field(strict=False), PlainSerializer(lambda path: path.name, return_type=str)]
FilePath = Annotated[_Path, AfterValidator(input_path)]  # a file that is read; absolute once loaded
SharedFolder = Annotated[_Path, AfterValidator(shared_path)]  # a folder that all workspaces share; absolute once loaded
PathBelow = Annotated[_Path, AfterValidator(expand_home)]  # relative to another folder, or absolute
TrackedPath = Annotated[_Path, AfterValidator(_require_tracked)]  # a dependency in dvc.yaml


class Params(BaseModel):
    """Base of every section: immutable, strict about types, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def read_params(path: Path = PARAMS_PATH) -> dict[str, Any]:
    """Read params.yaml as YAML 1.2 (as DVC does: `1e-4` is a number there, a string in YAML 1.1)."""
    if not path.exists():
        raise ParamsError(f"{path}: expected a params file, found none; write one with `sonolex compose demo`")
    try:
        document = YAML(typ="safe").load(path)
    except YAMLError as error:
        raise ParamsError(f"{path}: expected YAML, found a syntax error: {error}") from None
    if not isinstance(document, dict):
        raise ParamsError(f"{path}: expected sections (`train:`, ...), found {type(document).__name__}")
    return document


def load_params(kind: type[T], section: str, path: Path = PARAMS_PATH) -> T:
    """Load one section, named with dots (`models.ast`), as `kind`: a Params class or a union of them.

    Raises ParamsError that names every wrong key of the section at once.
    """
    value: object = read_params(path)
    for depth, key in enumerate(section.split("."), start=1):
        if not isinstance(value, dict) or key not in value:
            known = ", ".join(value) if isinstance(value, dict) else type(value).__name__
            where = ".".join(section.split(".")[:depth])
            raise ParamsError(f"{path}: {where}: expected a section of this name, found only: {known}")
        value = value[key]
    return validate_params(kind, value, section, path)


def validate_params(kind: type[T], value: object, section: str, path: Path = PARAMS_PATH) -> T:
    """Check one section's plain value against its class; see `load_params`."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        lines = [f"{path}: {_describe(kind, detail, section)}" for detail in error.errors()]
        raise ParamsError("\n".join(lines)) from None


def _describe(kind: object, error: ErrorDetails, section: str) -> str:
    keys, names, place = _locate(kind, error["loc"])
    where = ".".join(part for part in (section, *keys) if part)
    if error["type"] == "extra_forbidden":
        close = difflib.get_close_matches(keys[-1], names, n=1)
        hint = f"did you mean `{close[0]}`? " if close else ""
        return f"{where}: unknown key; {hint}known keys: {', '.join(names)}"
    found = error["input"]
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        kinds = ", ".join(str(tag) for form in members(place) for tag in _tags(form))
        found = found.get("kind") if isinstance(found, dict) else found
        return f"{where}.kind: expected one of {kinds}, found {'none' if found is None else spell(found)}"
    if error["type"] in ("model_type", "model_attributes_type"):
        return f"{where}: expected a mapping of keys, as recipes/base.yaml has it, found {spell(found)}"
    message = error["msg"].removeprefix("Value error, ")
    message = f"{where}: {message[0].lower()}{message[1:]}"
    if error["type"] == "value_error" and isinstance(found, dict):
        return message  # of a rule between keys, which includes the value found
    if error["type"] == "missing":
        return f"{message}, found no value; give it one, here or with `sonolex compose RECIPE {where}=VALUE`"
    if error["type"] == "string_type" and isinstance(found, int | float) and isinstance(error["loc"][-1], int):
        whole = where.rpartition(".")[0]
        return (
            f'{where}: expected text, found the number {found}; put it in quotes, ["{found}"], and on a command line the '
            f"whole setting too: '{whole}=[\"{found}\"]'"
        )
    return f"{message}, found {spell(found)}"


def _locate(kind: object, location: tuple[int | str, ...]) -> tuple[list[str], list[str], object]:
    """Return the keys of an error's location as in the file, the known names at the level of the last one, and its type.

    Pydantic puts the tag of a discriminated union's chosen member into the location, where the file has no key.
    """
    keys: list[str] = []
    names: list[str] = []
    for part in location:
        if part in (named := _named_members(kind)):
            kind = named[part]
            continue
        forms = members(kind)
        tagged = [form for form in forms if len(forms) > 1 and part in _tags(form)]
        if tagged:
            kind = tagged[0]
            continue
        keys.append(str(part))
        fields = fields_of(forms[0]) if len(forms) == 1 else {}
        names = list(fields)
        if part in fields:
            kind = field_annotation(fields[str(part)])
        else:  # the values of a mapping or a list share one type, the last argument
            kind = (get_args(forms[0]) or (object,))[-1]
    return keys, names, kind


def field_annotation(field: FieldInfo) -> object:
    """Return the annotation of a field, with the registry that its kinds come from if it has one."""
    notes = [note for note in field.metadata if isinstance(note, RegistryParams)]
    return Annotated[(field.annotation, *notes)] if notes else field.annotation


def members(kind: object) -> list[object]:
    """Return the types behind an annotation: the members of a union, or the type itself."""
    if get_origin(kind) is Annotated:
        chosen = [note for note in get_args(kind)[1:] if isinstance(note, RegistryParams)]
        return [*chosen[0].members] if chosen else members(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        return [m for argument in get_args(kind) for m in members(argument) if m is not type(None)]
    return [kind]


def _named_members(kind: object) -> dict[object, object]:
    """Return the members of a union by the tag that each is annotated with; none where they have no tags."""
    return {
        note.tag: get_args(member)[0]
        for member in get_args(kind)
        if get_origin(member) is Annotated
        for note in get_args(member)[1:]
        if isinstance(note, Tag)
    }


def fields_of(member: object) -> dict[str, FieldInfo]:
    """Return the fields of a section's class; those of any other type are none."""
    return dict(member.model_fields) if isinstance(member, type) and issubclass(member, BaseModel) else {}


def _tags(member: object) -> tuple[object, ...]:
    """Return the values of a union member's discriminator, the field `kind` or `name`."""
    fields = fields_of(member)
    return tuple(tag for key in ("kind", "name") if key in fields for tag in get_args(fields[key].annotation))
