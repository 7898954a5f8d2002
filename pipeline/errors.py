"""Errors that a user can cause; a message says where, what was expected, what was found, and what to do."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path


def spell(value: object) -> str:
    """Return a value as a message shows it: of a mapping its keys, whatever they hold."""
    if isinstance(value, Mapping):
        return f"a mapping with {', '.join(map(str, value)) or 'no keys'}"
    if isinstance(value, list | tuple) and any(isinstance(item, Mapping | list | tuple) for item in value):
        return f"a list of {len(value)}"
    return "null" if value is None else repr(value)


class SonolexError(ValueError):
    """A mistake in params, data or artifacts that the user can correct; programs print it without a traceback."""


class ParamsError(SonolexError):
    """params.yaml, or an override of it, is invalid; the message names every wrong key at once."""


class CorpusError(SonolexError):
    """The corpus cannot be used: missing tables, unknown labels, leaks between roles, too many bad files."""


class ArtifactError(SonolexError):
    """An artifact is missing, incomplete, edited, damaged, or was made with other settings.

    `stage` is the stage that writes it; a pattern where there are several, as `train_*`.
    """

    def __init__(self, path: Path, field: str, *, expected: object, found: object, stage: str) -> None:
        self.path, self.field, self.expected, self.found, self.stage = path, field, expected, found, stage
        if isinstance(found, Mapping):
            found = spell(found)
        found = " ".join(str(found).split())  # libraries' messages may have several lines
        target = f"--glob '{stage}'" if "*" in stage else stage
        super().__init__(
            f"{path}: {field}: expected {expected}, found {found}; rerun it with `dvc repro --force --single-item "
            f"{target}` (`dvc stage list` names the items of a matrix), or, if it was valid before, restore it with "
            f"`dvc checkout --force {path}`"
        )

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with all fields: by default an exception is rebuilt from its message alone."""
        values = {"expected": str(self.expected), "found": str(self.found), "stage": self.stage}
        return partial(type(self), self.path, self.field, **values), ()
