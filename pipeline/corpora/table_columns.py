"""Columns of a table of clips, by what they are called and what is in them: paths, labels, folds, groups, times.

Paths are known by the files that are there, labels by their name, or by few values that recur; one-hot columns hold 1 and 0.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pipeline.corpora.base import as_seconds, path_below
from pipeline.corpora.label_cells import class_columns, marked_classes, split_labels
from pipeline.corpora.layouts import FolderContents, Setting
from pipeline.corpora.splitting import PUBLISHED_ROLES
from pipeline.errors import CorpusError

Rows = Sequence[Mapping[str, str]]

# Names of columns, the likeliest first, in lower case; one that contains a name between separators counts as it.
LABEL_NAMES = (
    "label", "labels", "class", "classes", "category", "categories", "class_name", "target", "y", "tag", "tags", "species",
    "instrument", "instruments", "genre", "emotion", "event", "word", "digit", "keyword", "call", "scene", "type", "reason",
)  # fmt: skip
_FOLD_NAMES = ("fold", "split", "subset", "partition", "set", "role", "part")
_GROUP_NAMES = (
    "group", "speaker", "speaker_id", "recording", "recording_id", "song", "track", "artist", "subject", "patient",
    "individual", "bird", "session", "src_file", "source", "video", "ytid", "fsid", "site", "location", "author",
    "client_id", "uploader",
)  # fmt: skip
_START_NAMES = ("start", "onset", "start_seconds", "start_time", "start_s", "begin", "begin_time", "offset")
_DURATION_NAMES = ("duration", "length", "dur", "duration_seconds", "duration_s")

_SAMPLED = 2000  # rows by which columns are chosen
_FEWEST_FOUND = 0.5  # of the sampled paths must be files that are there
_SEPARATORS = (";", "|", ",")  # between the labels of a cell


def find_paths(contents: FolderContents, rows: Rows) -> tuple[str, str] | None:
    """Return the column that holds paths of audio files, and the folder that they are relative to; None where none does."""
    sample = rows[:_SAMPLED]
    by_name = _by_name(contents)
    best: tuple[float, str, str] | None = None
    for column in sample[0]:
        above = Counter(found for row in sample if (found := _folder_above(contents, by_name, row[column])) is not None)
        if above:
            folder, count = above.most_common(1)[0]
            if best is None or count / len(sample) > best[0]:
                best = count / len(sample), column, folder
    return None if best is None or best[0] < _FEWEST_FOUND else best[1:]


def choose_columns(table: Path, rows: Rows, path_column: str) -> tuple[dict[str, Setting], list[str]] | None:
    """Return the settings for a table's columns other than that of paths, and notes; None where no column holds labels."""
    others = [name for name in rows[0] if name != path_column]
    fold = _named(others, _FOLD_NAMES, lambda name: _are_folds([row[name] for row in rows]))
    times = _times(rows, others)
    taken = [name for name in (fold, *times.values()) if name]
    labels = _labels(table, rows, [name for name in others if name not in taken])
    if labels is None:
        return None
    settings, label_lists = labels
    taken.append(str(settings.get("labels_column", "label")))
    settings |= {key: name for key, name in times.items() if name} | ({"fold_column": fold} if fold else {})
    notes: list[str] = []
    group = _named([name for name in others if name not in taken], _GROUP_NAMES, lambda name: _recurs(rows, name))
    if group and not fold:
        lone = classes_of_one_group(label_lists, [row[group] for row in rows])
        if lone:
            notes.append(f"the column `{group}` is not taken for groups: all clips of {lone[0]} are of one")
            group = None
    if group:
        settings["group_column"] = group
    return settings, notes


def classes_of_one_group(labels: Sequence[Sequence[str]], groups: Sequence[str]) -> list[str]:
    """Return the classes whose clips are all of one group, which no folds can separate."""
    found: dict[str, set[str]] = {}
    for own, group in zip(labels, groups, strict=True):
        for label in own:
            found.setdefault(label, set()).add(group)
    return sorted(label for label, own in found.items() if len(own) < 2)


def _by_name(contents: FolderContents) -> dict[str, list[str]]:
    """Return last part of a path -> paths that end in it."""
    found: dict[str, list[str]] = {}
    for path in contents.audio:
        found.setdefault(path.name, []).append(str(path))
    return found


def _folder_above(contents: FolderContents, by_name: Mapping[str, Sequence[str]], cell: str) -> str | None:
    """Return the folder that a path of a table is relative to, empty for the root; None where there is no such file."""
    if not cell.strip():
        return None
    name = path_below(contents.root, cell)
    if name in contents.audio_names:
        return ""
    ends = [path for path in by_name.get(name.rpartition("/")[2], ()) if path.endswith(f"/{name}")]
    return ends[0].removesuffix(f"/{name}") if ends else None


def _named(columns: Sequence[str], names: Sequence[str], fits: Callable[[str], bool]) -> str | None:
    """Return the column that has the likeliest of some names, and values that fit."""
    for name in names:
        for column in columns:
            if (column.lower() == name or name in re.split(r"[\W_]+", column.lower())) and fits(column):
                return column
    return None


def _labels(table: Path, rows: Rows, columns: Sequence[str]) -> tuple[dict[str, Setting], list[tuple[str, ...]]] | None:
    """Return the settings of labels, and the labels of each row."""
    column = _named(columns, LABEL_NAMES, lambda name: _distinct(rows, name) > 1)
    if column is None and (one_hot := _one_hot(table, rows, columns)):
        found = [marked_classes(row, one_hot)[0] for row in rows]
        kind = "one" if all(len(own) == 1 for own in found) else "many"
        return {"labels_column": None, "label_kind": kind}, found
    column = column or _recurring(rows, columns)
    if column is None:
        return None
    cells = [row[column] for row in rows]
    separator = _separator(cells)
    lists = [split_labels(cell, separator) or () for cell in cells]
    settings: dict[str, Setting] = {} if column == "label" else {"labels_column": column}
    if separator:
        settings["label_separator"] = separator
    if any(len(own) != 1 for own in lists):
        settings["label_kind"] = "many"
    return settings, lists


def _one_hot(table: Path, rows: Rows, columns: Sequence[str]) -> list[str]:
    try:
        found = class_columns(table, [{name: row[name] for name in columns} for row in rows], (), None)
    except (CorpusError, IndexError):
        return []
    return found if len(found) > 1 else []


def _recurring(rows: Rows, columns: Sequence[str]) -> str | None:
    """Return the column of words with the fewest values, each of several rows on average."""
    counted = {name: _distinct(rows, name) for name in columns}
    fitting = [name for name, count in counted.items() if 1 < count <= len(rows) / 4 and not _are_numbers(rows, name)]
    return min(fitting, key=lambda name: counted[name], default=None)


def _separator(cells: Sequence[str]) -> str | None:
    """Return what separates labels, where cells hold several, which recur in other cells."""
    for separator in _SEPARATORS:
        several = [cell for cell in cells if separator in cell and not cell.startswith("[")]
        parts = {part.strip() for cell in cells for part in cell.split(separator)}
        if several and len(parts) < len(set(cells)):
            return separator
    return None


def _times(rows: Rows, columns: Sequence[str]) -> dict[str, str | None]:
    """Return the columns of start and duration; a duration without a start is the file's own, and needs no setting."""
    start = _named(columns, _START_NAMES, lambda name: _are_seconds(rows, name))
    duration = _named(columns, _DURATION_NAMES, lambda name: _are_seconds(rows, name)) if start else None
    return {"start_column": start, "duration_column": duration}


def _are_folds(values: Sequence[str]) -> bool:
    """Return whether values are roles with training and test clips, or the names of a few folds."""
    found = {value.strip().lower() for value in values}
    if found & PUBLISHED_ROLES.keys():
        return found <= PUBLISHED_ROLES.keys() and {"train", "test"} <= {PUBLISHED_ROLES[name] for name in found}
    return "" not in found and 1 < len(found) <= min(20, len(values) // 2)


def _are_seconds(rows: Rows, column: str) -> bool:
    return all((seconds := as_seconds(row[column])) is not None and seconds >= 0 for row in rows)


def _are_numbers(rows: Rows, column: str) -> bool:
    return all(as_seconds(row[column]) is not None for row in rows)


def _recurs(rows: Rows, column: str) -> bool:
    return 1 < _distinct(rows, column) < len(rows) and all(row[column].strip() for row in rows)


def _distinct(rows: Rows, column: str) -> int:
    return len({row[column] for row in rows})
