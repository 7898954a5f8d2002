"""Labels in the cells of a table: names in one column, or one-hot, a column for each class.

In the column of a class 1 and `true` say that the clip has it, 0 and `false` that it has not, `?` and `nan` that nobody
knows: such a label counts in neither loss nor metrics.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from pipeline.artifacts.files import parse_json
from pipeline.corpora.base import is_unicode, reject
from pipeline.corpora.spelling import tidy
from pipeline.errors import CorpusError

_MEANINGS: dict[str, bool | None] = {
    "1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False, "?": None, "nan": None,
}  # fmt: skip


def class_columns(
    path: Path, rows: Sequence[Mapping[str, str]], taken: Collection[str], classes: Sequence[str] | None
) -> list[str]:
    """Return the columns of classes: those named, or all others than the `taken` in which every cell says 1, 0 or ?.

    Raises CorpusError where there is none, and for cells of named columns that say something else.
    """
    names = [name for name in rows[0] if name not in taken] if classes is None else list(classes)
    wrong = {name: [row.get(name, "") for row in rows if _key(row.get(name, "")) not in _MEANINGS] for name in names}
    if classes is None:
        names = [name for name in names if not wrong[name]]
    else:
        missing = {"classes without a column": [name for name in names if name not in rows[0]]}
        reject(
            path, missing, f"The columns are {', '.join(rows[0])}; take others out of corpus.classes, or null takes all"
        )
        reject(path, {
            f"cells of `{name}` that are not 1, 0, true, false or ? (unknown)": [repr(cell) for cell in cells]
            for name, cells in wrong.items()
        })  # fmt: skip
    if not names:
        raise CorpusError(
            f"{path}: expected a column of 1 and 0 for each class, since corpus.labels_column is null, found "
            f"{', '.join(rows[0])}; name the column of labels in corpus.labels_column, or the columns in corpus.classes"
        )
    return names


def marked_classes(row: Mapping[str, str], columns: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the classes that a row says the clip has, and those that are unknown."""
    meanings = {name: _MEANINGS[_key(row[name])] for name in columns}
    return tuple(name for name, has in meanings.items() if has), tuple(n for n, has in meanings.items() if has is None)


def split_labels(text: str, separator: str | None) -> tuple[str, ...] | None:
    """Return the labels of a cell, or None when it begins like a JSON list but is not one."""
    if not text.startswith("["):
        parts = [text] if separator is None else text.split(separator)
        return tuple(tidy(part) for part in parts if part.strip())
    try:
        labels = parse_json(text)
    except ValueError:
        return None
    return tuple(map(tidy, labels)) if all(isinstance(label, str) and is_unicode(label) for label in labels) else None


def _key(cell: str) -> str:
    return cell.strip().lower()
