"""FSD50K adapter: Freesound clips of 0.3 to 30 s with any number of 200 labels, in published splits (Fonseca et al., 2022).

<root>/FSD50K.dev_audio/*.wav, FSD50K.eval_audio/*.wav
<root>/FSD50K.ground_truth/dev.csv           fname, labels, mids, split (train or val)
<root>/FSD50K.ground_truth/eval.csv          fname, labels, mids
<root>/FSD50K.ground_truth/vocabulary.csv    index, name, machine id, without a head

A clip is one upload, and its own group.
"""

import csv
from pathlib import Path
from typing import ClassVar, Literal

from pipeline.corpora.base import AdapterParams, ClipRow, CorpusListing, read_rows, read_text, reject
from pipeline.corpora.layouts import FolderContents, Recognised
from pipeline.corpora.spelling import found_classes

LICENCE = "FSD50K is CC BY 4.0 as a set (Fonseca et al., 2022); each clip has its own licence"


class Params(AdapterParams):
    kind: Literal["fsd50k"]

    layout: ClassVar[str] = "FSD50K.dev_audio/, FSD50K.eval_audio/ and FSD50K.ground_truth/ with dev.csv and eval.csv"
    published_folds: ClassVar[tuple[str, ...]] = ("train", "validation", "test")


def recognise(contents: FolderContents) -> Recognised | None:
    """Return the layout of a folder with FSD50K's tables."""
    table = "FSD50K.ground_truth/dev.csv"
    return Recognised("fsd50k", f"it has {table}") if contents.has(table) else None


def list_clips(params: Params) -> CorpusListing:
    """List the clips of both tables; the classes are in the order of vocabulary.csv, or sorted where it is missing."""
    tables = params.root / "FSD50K.ground_truth"
    clips = [
        ClipRow(
            clip_id=f"{name}/{row['fname']}",
            source=f"FSD50K.{name}_audio/{row['fname']}.wav",
            labels=tuple(filter(None, row["labels"].split(","))),
            fold={"val": "validation"}.get(split := row.get("split", "test"), split),
        )
        for name, columns in (("dev", ("fname", "labels", "split")), ("eval", ("fname", "labels")))
        for row in read_rows(tables / f"{name}.csv", columns)
    ]
    vocabulary = tables / "vocabulary.csv"
    if not vocabulary.is_file():
        return CorpusListing(found_classes(clip.labels for clip in clips), "many", LICENCE, clips)
    classes, ids = _read_vocabulary(vocabulary)
    return CorpusListing(classes, "many", LICENCE, clips, class_ids=ids)


def _read_vocabulary(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return names and machine ids of the classes. Raises CorpusError for a line that has not a number, a name and an id."""
    rows = [row for row in csv.reader(read_text(path, "FSD50K's classes").splitlines()) if row]
    wrong = [",".join(row) for row in rows if len(row) != 3 or not row[0].isdecimal()]
    reject(path, {"lines that are not a number, a name and a machine id": wrong})
    rows.sort(key=lambda row: int(row[0]))
    return tuple(row[1] for row in rows), tuple(row[2] for row in rows)
