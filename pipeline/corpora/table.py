"""Table adapter: a corpus described by one row per clip in CSV, TSV or JSON lines. See docs/corpora.md."""

from pathlib import PurePosixPath
from typing import ClassVar, Literal

from pipeline.artifacts.clips import LabelKind
from pipeline.artifacts.files import parse_json
from pipeline.corpora.base import AdapterParams, ClipRow, CorpusListing, is_unicode, read_rows, reject
from pipeline.params import FilePath


class Params(AdapterParams):
    kind: Literal["table"]
    table: FilePath  # .csv, .tsv or .jsonl; need not lie below root
    path_column: str  # audio file, below root
    labels_column: str
    label_separator: str | None  # between labels; null = a cell is one label. A JSON list is read as such either way
    label_kind: LabelKind  # one: exactly one label per clip; many: any number
    classes: list[str] | None  # in the order of the targets; null = every label of the table, sorted
    fold_column: str | None  # published fold, or train/validation/test; null = folds are drawn
    group_column: str | None  # clips that must stay together; null = clips of one file
    start_column: str | None  # seconds; null = clips begin with their file
    duration_column: str | None  # seconds; null = clips end with their file
    licence: str

    layout: ClassVar[str] = "the audio files that corpus.table names"


def list_clips(params: Params) -> CorpusListing:
    """List the table's clips; a clip's id is its path, with its start where the table has one."""
    optional = (params.fold_column, params.group_column, params.start_column, params.duration_column)
    columns = (params.path_column, params.labels_column, *(name for name in optional if name is not None))
    clips: list[ClipRow] = []
    problems: dict[str, list[str]] = {"not a number of seconds": [], "not a JSON list of labels": []}
    for row in read_rows(params.table, columns):
        source = str(PurePosixPath(row[params.path_column]))  # "./a.wav" is "a.wav"
        start = row[params.start_column] if params.start_column else ""
        clip_id = f"{source}@{start}" if start else source
        times = [0.0, 0.0]
        for index, text in enumerate((start, row[params.duration_column] if params.duration_column else "")):
            try:
                times[index] = float(text or 0)
            except ValueError:
                problems["not a number of seconds"].append(f"{clip_id} ({text!r})")
        labels = _split_labels(row[params.labels_column], params.label_separator)
        if labels is None:
            problems["not a JSON list of labels"].append(f"{clip_id} ({row[params.labels_column]})")
        clips.append(
            ClipRow(
                clip_id,
                source,
                labels or (),
                start=times[0],
                duration=times[1],
                group=row[params.group_column] if params.group_column else "",
                fold=row[params.fold_column] if params.fold_column else "",
            )
        )
    reject(params.table, problems)
    found = sorted({label for clip in clips for label in clip.labels})
    classes = found if params.classes is None else params.classes
    return CorpusListing(tuple(classes), params.label_kind, params.licence, clips)


def _split_labels(text: str, separator: str | None) -> tuple[str, ...] | None:
    """Return the labels of a cell, or None when it begins like a JSON list but is not one."""
    if not text.startswith("["):
        parts = [text] if separator is None else text.split(separator)
        return tuple(part.strip() for part in parts if part.strip())
    try:
        labels = parse_json(text)
    except ValueError:
        return None
    return tuple(labels) if all(isinstance(label, str) and is_unicode(label) for label in labels) else None
