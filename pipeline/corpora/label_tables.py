"""Tables of labels that people or other programs write, for clips that are trained on.

overrides     CSV, TSV or JSON lines with the columns `clip` and `labels`: one label, several with | between, or a JSON list
              or the JSON of AST's and PSLA's programs, with ids (pipeline/corpora/label_json.py)
soft labels   CSV, TSV or Parquet with the column `clip` and one column per class, of probabilities: a clip's sum to 1 where
              clips have one label, and lie between 0 and 1 where they have several; an empty cell is then unknown

A column `note` is for people; other columns of overrides are not read either. Raises CorpusError that names every row that
cannot be used, and what to do.
"""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from pipeline.artifacts.clips import ClipTable
from pipeline.artifacts.files import parse_json
from pipeline.artifacts.training_labels import TRAINING_LABELS
from pipeline.corpora.base import is_unicode, read_numbered_rows, read_text, reject, separator
from pipeline.corpora.datafile import holds_entries
from pipeline.corpora.label_json import read_label_json
from pipeline.corpora.splitting import PUBLISHED_ROLES
from pipeline.errors import CorpusError

CLIP, LABELS, NOTE = "clip", "labels", "note"  # columns
SEPARATOR = "|"  # between the labels of a cell

_WHAT = "the table of labels.use"
_KEY_OF_STAGES = b"sonolex"  # in Parquet's metadata
_SUM_TOLERANCE = 1e-3  # of probabilities that are written with four digits
_ROWS = 65_536  # checked at once: bounds the memory of 64-bit copies


def is_of_a_stage(path: Path) -> bool:
    """Return whether a table was written by a stage of Sonolex."""
    if path.suffix.lower() != ".parquet":
        return False
    try:
        return _KEY_OF_STAGES in (pq.read_metadata(path).metadata or {})
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(f"{path}: expected a Parquet file, found {error}") from None


def read_label_table(path: Path, clips: ClipTable) -> pa.Table:
    """Return a table of overrides or of soft labels as the columns of TRAINING_LABELS."""
    if path.suffix.lower() == ".json" and holds_entries(path):
        return _read_published(path, clips)
    if path.suffix.lower() in (".json", ".jsonl"):
        return read_overrides(path, clips)
    if path.suffix.lower() == ".parquet":
        return _read_soft_labels(path, pq.read_table(path, partitioning=None), 1, clips)
    text = read_text(path, _WHAT)
    mark = separator(path, text, (CLIP,))
    if LABELS in next(csv.reader([text.lstrip().partition("\n")[0]], delimiter=mark), []):
        return read_overrides(path, clips)
    return _read_soft_labels(path, _read_separated(path, mark, clips.metadata["classes"]), 2, clips)


def read_overrides(path: Path, clips: ClipTable) -> pa.Table:
    """Return a table of overrides as the columns of TRAINING_LABELS."""
    rows = read_numbered_rows(path, (CLIP, LABELS), _WHAT)
    names, lines = [row[CLIP].strip() for _, row in rows], [line for line, _ in rows]
    number_of = {name: number for number, name in enumerate(clips.metadata["classes"])}
    one = clips.metadata["label_kind"] == "one"
    labels = [split_cell(row[LABELS], one=one) for _, row in rows]
    faults = _faulty_clips(names, lines, clips) | {
        f"labels that are no classes (these are {', '.join(list(number_of)[:20])}{' ...' * (len(number_of) > 20)})": [
            f"row {line}: {label!r}"
            for line, own in zip(lines, labels, strict=True)
            for label in own
            if label not in number_of
        ],
        "rows without exactly one label, where label_kind is one": [
            f"row {line}: {', '.join(own) or 'none'}"
            for line, own in zip(lines, labels, strict=True)
            if one and len(own) != 1
        ],
    }
    reject(path, faults)
    return labels_as_columns(names, [sorted({number_of[label] for label in own}) for own in labels], clips)


def _read_published(path: Path, clips: ClipTable) -> pa.Table:
    names, labels = read_label_json(path, clips)
    wrong = [name for name, own in zip(names, labels, strict=True) if len(own) != 1]
    faults = _faulty_clips(names, range(1, len(names) + 1), clips)
    one = clips.metadata["label_kind"] == "one"
    reject(path, faults | {"clips without exactly one label, where label_kind is one": wrong if one else []})
    return labels_as_columns(names, labels, clips)


def split_cell(text: str, *, one: bool) -> list[str]:
    """Return the labels of a cell: one label, a JSON list, or where clips have several labels, those with | between."""
    text = text.strip()
    if text.startswith("["):
        try:
            labels = parse_json(text)
        except ValueError:
            labels = None
        if isinstance(labels, list) and all(isinstance(label, str) and is_unicode(label) for label in labels):
            return labels
    return [label.strip() for label in ([text] if one else text.split(SEPARATOR)) if label.strip()]


def join_cell(labels: Sequence[str], *, one: bool) -> str:
    """Return the labels as a cell, which `split_cell` reads."""
    text = SEPARATOR.join(labels)
    return text if split_cell(text, one=one) == list(labels) else json.dumps(list(labels), ensure_ascii=False)


def labels_as_columns(clip_ids: list[str], labels: list[list[int]], clips: ClipTable) -> pa.Table:
    """Return the columns of TRAINING_LABELS; what was unknown of a clip stays so, unless it now has the label."""
    places = pc.index_in(pa.array(clip_ids, pa.string()), clips["clip_id"].combine_chunks())
    published = clips["unknown"].take(places).to_pylist()
    unknown = [sorted(set(before) - set(own)) for before, own in zip(published, labels, strict=True)]
    soft: list[list[float]] = [[]] * len(labels)
    columns = {"clip_id": clip_ids, "labels": labels, "unknown": unknown, "soft": soft}
    return pa.table(columns, schema=TRAINING_LABELS.arrow)


def _read_separated(path: Path, mark: str, classes: Sequence[str]) -> pa.Table:
    options = pacsv.ConvertOptions(
        column_types={CLIP: pa.string()} | {name: pa.float64() for name in classes}, strings_can_be_null=False
    )
    try:
        return pacsv.read_csv(path, parse_options=pacsv.ParseOptions(delimiter=mark), convert_options=options)
    except pa.ArrowException as error:
        raise CorpusError(f"{path}: expected a column of probabilities for each class, found {error}") from None


def _read_soft_labels(path: Path, table: pa.Table, first: int, clips: ClipTable) -> pa.Table:
    """Return soft labels as the columns of TRAINING_LABELS; `first` is the number of the first row, for messages."""
    classes, one = clips.metadata["classes"], clips.metadata["label_kind"] == "one"
    _require_columns(path, table.column_names, classes)
    names, lines = table[CLIP].cast(pa.string()).to_pylist(), list(range(first, first + len(table)))
    values = _probabilities(path, table, classes)
    faults = _faulty_clips(names, lines, clips)
    faults |= _faulty_values(values, names, lines, one=one)
    reject(path, faults)
    labels, unknown = _decided(values, one=one)
    ends = pa.array(np.arange(len(values) + 1) * len(classes), pa.int32())
    soft = pa.ListArray.from_arrays(ends, pa.array(values.ravel(), pa.float32(), from_pandas=False))
    return pa.table(
        {"clip_id": names, "labels": labels, "unknown": unknown, "soft": soft}, schema=TRAINING_LABELS.arrow
    )


def _require_columns(path: Path, found: Sequence[str], classes: Sequence[str]) -> None:
    expected = {CLIP, *classes}
    reject(
        path,
        {
            f"columns that are missing, of `{CLIP}` and the classes": [
                repr(n) for n in (CLIP, *classes) if n not in found
            ],
            "columns that are no classes": [repr(name) for name in found if name not in expected | {NOTE}],
            "columns listed twice": sorted({name for name in found if found.count(name) > 1}),
        },
        f"a table of soft labels has the column `{CLIP}` and one for each class, a table of overrides the columns `{CLIP}` "
        f"and `{LABELS}`; correct the first row",
    )


def _probabilities(path: Path, table: pa.Table, classes: Sequence[str]) -> np.ndarray:
    """Return the values (clip, class) float32, NaN where a cell is empty."""
    values = np.empty((len(table), len(classes)), np.float32)
    for number, name in enumerate(classes):
        kind = table.schema.field(name).type
        if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
            raise CorpusError(f"{path}: column {name!r}: expected probabilities, found {kind}")
        values[:, number] = table[name].cast(pa.float32(), safe=False).to_numpy()
    return values


def _faulty_values(
    values: np.ndarray, names: Sequence[str], lines: Sequence[int], *, one: bool
) -> dict[str, list[str]]:
    outside, empty, sums = [], [], []
    for start in range(0, len(values), _ROWS):
        block = values[start : start + _ROWS].astype(np.float64)
        unknown = np.isnan(block).any(axis=1)
        wrong = ((block < 0) | (block > 1)).any(axis=1)
        total = block.sum(axis=1)
        uneven = ~unknown & ~wrong & (np.abs(total - 1) > _SUM_TOLERANCE)
        outside += [f"row {lines[start + i]}: {names[start + i]}" for i in np.flatnonzero(wrong).tolist()]
        empty += [f"row {lines[start + i]}: {names[start + i]}" for i in np.flatnonzero(unknown).tolist()]
        sums += [
            f"row {lines[start + i]}: {names[start + i]} ({total[i]:.4g})" for i in np.flatnonzero(uneven).tolist()
        ]
    return {
        "rows with values outside 0 to 1 (give probabilities, not logits)": outside,
        "rows with empty cells, where label_kind is one (give every class a probability)": empty if one else [],
        "rows whose probabilities do not sum to 1, where label_kind is one (divide each row by its sum)": sums
        if one
        else [],
    }


def _decided(values: np.ndarray, *, one: bool) -> tuple[pa.Array, pa.Array]:
    """Return the labels that the values amount to, and what is unknown: the likeliest class, or all from 1/2."""
    if one:
        labels = pa.array(values.argmax(axis=1)[:, None].tolist(), pa.list_(pa.uint16()))
        return labels, pa.array([[]] * len(values), pa.list_(pa.uint16()))
    return _true_positions(values >= 0.5), _true_positions(np.isnan(values))


def _true_positions(mask: np.ndarray) -> pa.Array:
    ends = pa.array(np.concatenate([[0], np.cumsum(mask.sum(axis=1))]), pa.int32())
    return pa.ListArray.from_arrays(ends, pa.array(np.nonzero(mask)[1], pa.uint16()))


def _faulty_clips(names: Sequence[str], lines: Sequence[int], clips: ClipTable) -> dict[str, list[str]]:
    """Return the rows of clips that cannot have other labels, by what is wrong with them."""
    ids = pa.array(names, pa.string())
    folds = clips["fold"].take(pc.index_in(ids, clips["clip_id"].combine_chunks())).to_pylist()
    first: dict[str, int] = {}
    unknown, kept, twice = [], [], []
    for name, line, fold in zip(names, lines, folds, strict=True):
        role = PUBLISHED_ROLES.get((fold or "").lower(), "train")
        if fold is None:
            unknown.append(f"row {line}: {name!r}")
        elif role != "train":
            kept.append(f"row {line}: {name} ({role})")
        if first.setdefault(name, line) != line:
            twice.append(f"rows {first[name]} and {line}: {name}")
    return {
        f"clips that the corpus has not (write them as in the column clip_id of {clips.path}, or delete the rows)": unknown,
        "clips that are never trained on, whose labels stay as published (delete the rows)": kept,
        "clips listed twice (delete one of the rows)": twice,
    }
