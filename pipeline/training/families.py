"""Families of classes, such as strings and brass: a table with the columns `class` and `family`, a row for each class."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.errors import ParamsError

COLUMNS = ("class", "family")
_SETTING = "train.loss.families.groups"
_NAMED = 5  # classes in a message


def family_matrix(path: Path, classes: Sequence[str]) -> np.ndarray:
    """Return which classes each family has, (family, class) bool; families in order of their names.

    Rows of other classes are ignored, so that one table serves several corpora. Raises ParamsError for a file that is not
    such a table, and for classes that have no family or two.
    """
    family_of = read_families(path)
    missing = [name for name in classes if name not in family_of]
    if missing:
        named = ", ".join(missing[:_NAMED]) + (", ..." if len(missing) > _NAMED else "")
        raise ParamsError(
            f"{_SETTING}: {path}: expected a family for each of the {len(classes)} classes, found none for {len(missing)}: "
            f"{named}; add a row for each, with a family of its own where it is like no other, or set train.loss.families "
            "to null"
        )
    families = sorted({family_of[name] for name in classes})
    return np.array([[family_of[name] == family for name in classes] for family in families])


def read_families(path: Path) -> dict[str, str]:
    """Return class -> family. Raises ParamsError for a file that is not such a table."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ParamsError(
            f"{_SETTING}: expected the path of a CSV table with the columns {' and '.join(COLUMNS)}, found {path}: {error}; "
            "metadata/instruments/families.csv is one"
        ) from None
    reader = csv.DictReader(lines)
    if not set(COLUMNS) <= set(reader.fieldnames or ()):
        found = ", ".join(reader.fieldnames or ()) or "no columns"
        raise ParamsError(
            f"{_SETTING}: {path}: expected the columns {' and '.join(COLUMNS)}, separated by commas, found {found}"
        )
    family_of: dict[str, str] = {}
    for row in reader:
        name, family = (row[column] or "" for column in COLUMNS)
        if family_of.setdefault(name, family) != family:
            raise ParamsError(
                f"{_SETTING}: {path}, line {reader.line_num}: expected one family for {name}, found {family_of[name]} and "
                f"{family}; keep one of the rows"
            )
        if not family:
            raise ParamsError(f"{_SETTING}: {path}, line {reader.line_num}: expected a family for {name!r}, found none")
    return family_of
