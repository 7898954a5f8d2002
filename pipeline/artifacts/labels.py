"""Table of labels that replace the published ones for the training clips of one fold.

Conventions: labels are positions in the class list, ascending. The table holds the published labels and the new ones, so
that a corpus that has changed since is detected.
"""

from pathlib import Path
from typing import TypedDict

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.artifacts.settings import Metadata
from pipeline.artifacts.tables import Table, TableSchema

# Functional, since `class` is a keyword.
LabelledClass = TypedDict(
    "LabelledClass",
    {
        "class": str,
        "positives": int,  # clips published with it
        "threshold": float | None,  # of its scores; None without positives
        "added_1": int,  # clips that type 1 adds it to
        "added_2": int,
    },
)


class LabelsMetadata(Metadata):
    """Metadata of a table of labels."""

    fold: str  # whose training clips these are
    corpus: str
    classes: list[str]
    models: list[str]  # whose scores, of all seeds, were averaged
    weights: list[str]  # digests of their weights
    ontology: str  # digest of the file
    types: list[int]
    threshold: str
    per_class: list[LabelledClass]  # in the order of the classes


LABELS = TableSchema(
    name="labels",
    version=1,
    stage="enhance*",
    columns={
        "clip_id": pa.string(),
        "published": pa.list_(pa.uint16()),
        "labels": pa.list_(pa.uint16()),  # the published ones, and what was added
    },
    metadata=LabelsMetadata,
)


def open_labels(path: Path) -> Table[LabelsMetadata]:
    """Open a table of labels and check that ids are unique and labels lie inside the class list."""
    table = LABELS.open(path)
    num_repeated = len(table) - pc.count_distinct(table["clip_id"]).as_py()
    if num_repeated:
        raise LABELS.error(path, "clip_id", expected="unique ids", found=f"{num_repeated} repeated")
    highest = pc.max(table["labels"].combine_chunks().flatten()).as_py()
    if highest is not None and highest >= len(table.metadata["classes"]):
        raise LABELS.error(path, "labels", expected=f"below {len(table.metadata['classes'])}", found=highest)
    return table
