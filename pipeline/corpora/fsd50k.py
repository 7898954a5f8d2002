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

from pipeline.corpora.base import AdapterParams, ClipRow, CorpusListing, read_rows
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
    classes = _read_vocabulary(vocabulary) if vocabulary.is_file() else found_classes(clip.labels for clip in clips)
    return CorpusListing(classes, "many", LICENCE, clips)


def _read_vocabulary(path: Path) -> tuple[str, ...]:
    rows = [row for row in csv.reader(path.read_text(encoding="utf-8-sig").splitlines()) if row]
    return tuple(row[1] for row in sorted(rows, key=lambda row: int(row[0])))
