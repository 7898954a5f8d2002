"""Predictions as records, and tables of them: CSV, JSON lines and Parquet.

A record has the keys file, start, end (seconds), labels (what is decided for) and scores (class -> probability, the highest
first, or of all classes in their order), or file, reason and message for a file that could not be used. With the scores of
all classes it has their decisions, too: class -> 1 or 0. Rows of CSV and Parquet are flat: class_1, score_1, class_2, ...,
or the columns `score:CLASS` and `decision:CLASS` of every class.
"""

import csv
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TextIO, TypeAlias

from pipeline.artifacts.files import replacing
from pipeline.inference.prediction import Failure, Prediction

TableFormat: TypeAlias = Literal["csv", "jsonl", "parquet"]
Value: TypeAlias = str | float | list[str] | dict[str, float] | dict[str, int] | None
Record: TypeAlias = dict[str, Value]
Write: TypeAlias = Callable[[Prediction | Failure], None]

LABEL_SEPARATOR = "|"  # between labels in a cell of CSV

_ROWS_PER_GROUP = 4096  # of Parquet
_BEFORE, _AFTER = ("file", "start", "end", "labels"), ("reason", "message")


def to_record(item: Prediction | Failure, top: int | None) -> Record:
    """Return the record of a prediction, with its `top` scores or all of them, or of a failure."""
    if isinstance(item, Failure):
        return {"file": _printable(item.source), "reason": item.reason, "message": _printable(item.message)}
    if top is None:
        scores = dict(zip(item.classes, item.scores.tolist(), strict=True))
    else:
        scores = dict(item.top(top))
    record: Record = {"file": _printable(item.source), "start": item.start, "end": item.end, "labels": item.labels}
    if top is not None:
        return record | {"scores": scores}
    return record | {"scores": scores, "decisions": dict(zip(item.classes, map(int, item.decisions), strict=True))}


@contextmanager
def open_table(to: TableFormat, out: Path | None, classes: Sequence[str], top: int | None) -> Iterator[Write]:
    """Yield a function that adds a row to a table: the file `out`, which appears when it is whole, or standard output."""
    if to == "parquet":
        assert out is not None
        with replacing(out) as partial, _parquet_rows(partial, classes, top) as write:
            yield write
        return
    if out is None:
        yield _text_rows(to, sys.stdout, classes, top)
        return
    with replacing(out) as partial, partial.open("w", encoding="utf-8", newline="") as stream:
        yield _text_rows(to, stream, classes, top)


def _text_rows(to: TableFormat, stream: TextIO, classes: Sequence[str], top: int | None) -> Write:
    return _json_rows(stream, top) if to == "jsonl" else _csv_rows(stream, classes, top)


def _json_rows(stream: TextIO, top: int | None) -> Write:
    def write(item: Prediction | Failure) -> None:
        stream.write(json.dumps(to_record(item, top), ensure_ascii=False) + "\n")

    return write


def _csv_rows(stream: TextIO, classes: Sequence[str], top: int | None) -> Write:
    writer = csv.DictWriter(stream, _columns(classes, top), lineterminator="\n")
    writer.writeheader()

    def write(item: Prediction | Failure) -> None:
        row = _flat(to_record(item, top), top)
        writer.writerow(row | {"labels": LABEL_SEPARATOR.join(item.labels)} if isinstance(item, Prediction) else row)

    return write


@contextmanager
def _parquet_rows(path: Path, classes: Sequence[str], top: int | None) -> Iterator[Write]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"start": pa.float64(), "end": pa.float64(), "labels": pa.list_(pa.string())}
    types |= dict.fromkeys((name for name in _columns(classes, top) if name.startswith("score")), pa.float64())
    types |= dict.fromkeys((name for name in _columns(classes, top) if name.startswith("decision:")), pa.int8())
    fields = [(name, types.get(name, pa.string())) for name in _columns(classes, top)]
    schema = pa.schema(fields)
    rows: list[Record] = []
    with pq.ParquetWriter(path, schema) as writer:

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(rows, schema))
            rows.clear()

        def write(item: Prediction | Failure) -> None:
            rows.append(_flat(to_record(item, top), top))
            if len(rows) >= _ROWS_PER_GROUP:
                flush()

        yield write
        flush()


def _columns(classes: Sequence[str], top: int | None) -> list[str]:
    if top is None:
        return [*_BEFORE, *(f"{what}:{name}" for what in ("score", "decision") for name in classes), *_AFTER]
    ranks = range(1, min(top, len(classes)) + 1)
    return [*_BEFORE, *(f"{name}_{rank}" for rank in ranks for name in ("class", "score")), *_AFTER]


def _flat(record: Record, top: int | None) -> Record:
    """Return a record with a column for every score."""
    row = {key: value for key, value in record.items() if key not in ("scores", "decisions")}
    decisions = record.get("decisions")
    row |= {f"decision:{name}": value for name, value in decisions.items()} if isinstance(decisions, dict) else {}
    scores = record.get("scores")
    for rank, (name, score) in enumerate(scores.items() if isinstance(scores, dict) else (), start=1):
        row |= {f"score:{name}": score} if top is None else {f"class_{rank}": name, f"score_{rank}": score}
    return row


def _printable(text: str) -> str:
    """Return text that UTF-8 can write: a file's name may hold any bytes."""
    return text.encode("utf-8", "backslashreplace").decode()
