"""Settings recorded in artifacts, and the check that they agree with params.yaml.

Every artifact may hold the metadata entry `settings`: key of params.yaml, with dots -> value, for those that its stage read.
DVC reruns a stage whose params changed; this is a second check, on the artifact itself.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NotRequired, Protocol, TypedDict, cast

from pipeline.errors import ArtifactError

SETTINGS: Final = "settings"  # name of the metadata entry

_ABSENT = "nothing"


class Metadata(TypedDict):
    """Base of the metadata of every kind of table and of weights."""

    settings: NotRequired[dict[str, object]]  # SETTINGS


class Schema(Protocol):
    """Interface of artifact schemas: reading metadata, and building errors."""

    def read_metadata(self, path: Path) -> Mapping[str, object]:
        """Read the metadata of an artifact without its content."""

    def error(self, path: Path, field_name: str, /, *, expected: object, found: object) -> ArtifactError:
        """Build the error for an artifact of this kind."""


def leaves(value: object, key: str = "") -> Iterator[tuple[str, object]]:
    """Yield (key with dots, value) of every leaf of nested mappings; an empty mapping under a key is a leaf."""
    if isinstance(value, Mapping) and (value or not key):
        for name, inner in value.items():
            yield from leaves(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


def differences(settings: object, document: Mapping[str, object]) -> list[tuple[str, object, object]]:
    """Return (key, value in params.yaml, recorded value) for every recorded setting that differs from params.yaml."""
    now = dict(leaves(document))
    return [
        (key, now.get(key, _ABSENT), value)
        for key, value in dict(leaves(settings)).items()
        if key not in now or _plain(now[key]) != _plain(value)
    ]


def require_current(document: Mapping[str, object], *artifacts: tuple[Schema, Path]) -> None:
    """Raise ArtifactError, naming the first differing setting, where an artifact was made with other settings."""
    for schema, path in artifacts:
        found = differences(schema.read_metadata(path).get(SETTINGS, {}), document)
        if found:
            key, now, value = found[0]
            others = f" ({len(found) - 1} more settings differ)" if len(found) > 1 else ""
            raise schema.error(path, key, expected=f"{now}, as in params.yaml", found=f"{value}{others}")


def without_folders(value: object) -> object:
    """Return plain params with the name in place of every absolute path: where files lie is this machine's matter."""
    if isinstance(value, Mapping):
        return {key: without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(inner) for inner in value]
    is_path = isinstance(value, str) and value.startswith((os.sep, f"~{os.sep}"))
    return Path(cast(str, value)).name if is_path else value


def _plain(value: object) -> object:
    """Return a value as JSON stores it: tuples as lists; whole floats equal integers, as in Python."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
