"""Table adapter: a corpus described by one row per clip: CSV, TSV, JSON or JSON lines. See docs/corpora.md."""

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import ClassVar, Literal

from pipeline.artifacts.clips import LabelKind
from pipeline.corpora.base import AdapterParams, ClipRow, CorpusListing, as_seconds, path_below, read_rows, reject
from pipeline.corpora.label_cells import class_columns, marked_classes, split_labels
from pipeline.corpora.layouts import FolderContents, Recognised, Setting
from pipeline.corpora.spelling import found_classes
from pipeline.corpora.table_columns import choose_columns, find_paths
from pipeline.errors import CorpusError
from pipeline.params import FilePath

_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".txt")  # of files that may be tables
_MOST_TABLES = 50  # that are looked at
_LARGEST = 1 << 28  # bytes of a table that is looked at


class Params(AdapterParams):
    kind: Literal["table"]
    table: FilePath  # .csv, .tsv, .json or .jsonl; need not lie below root
    path_column: str  # audio file, below root, or absolute
    labels_column: str | None  # null = a column of 1 and 0 for each class (one-hot)
    label_separator: str | None  # between labels; null = a cell is one label. A JSON list is read as such either way
    label_kind: LabelKind  # one: exactly one label per clip; many: any number
    classes: list[str] | None  # in the order of the targets; null = every label of the table, sorted
    fold_column: str | None  # published fold, or train/validation/test; null = folds are drawn
    group_column: str | None  # clips that must stay together; null = clips of one file
    start_column: str | None  # seconds; null = clips begin with their file
    duration_column: str | None  # seconds; null = clips end with their file
    licence: str

    layout: ClassVar[str] = "the audio files that corpus.table names"

    def columns(self) -> list[str]:
        """Return the columns that are read, those of one-hot labels excepted."""
        optional = (self.labels_column, self.fold_column, self.group_column, self.start_column, self.duration_column)
        return [self.path_column, *filter(None, optional)]


def recognise(contents: FolderContents) -> Recognised | None:
    """Return the layout of a folder with a table whose rows name audio files and their labels; of several, the longest."""
    found = [layout for path in _tables(contents) if (layout := _recognise_table(contents, path)) is not None]
    return max(found, key=lambda pair: pair[0], default=(0, None))[1]


def _tables(contents: FolderContents) -> list[PurePosixPath]:
    """Return the files that may be tables: not those that lie beside an audio file as its own."""
    own = {path.with_suffix("") for path in contents.audio}
    names = [path for path in contents.others if path.suffix.lower() in _SUFFIXES and path.with_suffix("") not in own]
    return [path for path in names[:_MOST_TABLES] if (contents.root / path).stat().st_size <= _LARGEST]


def _recognise_table(contents: FolderContents, table: PurePosixPath) -> tuple[int, Recognised] | None:
    """Return the number of rows of a table and its layout; None where it is not of clips."""
    path = contents.root / table
    try:
        rows = read_rows(path, ())
    except CorpusError:
        return None
    if (paths := find_paths(contents, rows)) is None or (chosen := choose_columns(path, rows, paths[0])) is None:
        return None
    (column, below), (settings, notes) = paths, chosen
    own: dict[str, Setting] = {"table": str(path)}
    if column != "file":
        own["path_column"] = column
    return len(rows), Recognised("table", f"{table} names the files", own | settings, below, tuple(notes))


def list_clips(params: Params) -> CorpusListing:
    """List the table's clips; a clip's id is its path, with its start where the table has one."""
    rows = read_rows(params.table, params.columns())
    one_hot = class_columns(params.table, rows, params.columns(), params.classes) if not params.labels_column else []
    problems: dict[str, list[str]] = {"not a number of seconds": [], "not a JSON list of labels": []}
    clips = [_clip(params, row, one_hot, problems) for row in rows]
    reject(params.table, problems)
    found = one_hot or found_classes(clip.labels for clip in clips)
    classes = found if params.classes is None else params.classes
    return CorpusListing(tuple(classes), params.label_kind, params.licence, clips)


def _clip(params: Params, row: dict[str, str], one_hot: Sequence[str], problems: dict[str, list[str]]) -> ClipRow:
    source = path_below(params.root, row[params.path_column])
    start = row[params.start_column] if params.start_column else ""
    clip_id = f"{source}@{start}" if start else source
    texts = (start, row[params.duration_column] if params.duration_column else "")
    times = [as_seconds(text) for text in texts]
    problems["not a number of seconds"] += [
        f"{clip_id} ({text!r})" for text, time in zip(texts, times, strict=True) if time is None
    ]
    labels: tuple[str, ...] | None
    labels, unknown = marked_classes(row, one_hot)
    if params.labels_column:
        labels = split_labels(row[params.labels_column], params.label_separator)
    if labels is None:
        problems["not a JSON list of labels"].append(f"{clip_id} ({row[params.labels_column or '']})")
    return ClipRow(
        clip_id,
        source,
        labels or (),
        start=times[0] or 0.0,
        duration=times[1] or 0.0,
        group=row[params.group_column] if params.group_column else "",
        fold=row[params.fold_column] if params.fold_column else "",
        unknown=unknown,
    )
