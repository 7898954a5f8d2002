"""Relabelling: replace the published labels of one fold's training clips by those of a table.

Labels of test clips never change: the table holds training clips only, and a manifest with its labels serves no other fold.
"""

import json
from pathlib import Path
from typing import Annotated, TypedDict

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BeforeValidator, ConfigDict

from pipeline.artifacts.clips import ClipTable
from pipeline.artifacts.labels import LABELS, open_labels
from pipeline.corpora.base import reject
from pipeline.errors import CorpusError
from pipeline.params import FilePath, Params

_KEY = "labels"  # in the identity of a corpus


class LabelSource(TypedDict):
    """Source of a manifest's labels, as part of the corpus's identity."""

    table: str  # name of the file
    fold: str  # whose training clips it is for
    digest: str


class UsedLabels(Params):
    """The key of the section `labels` that the manifest needs."""

    model_config = ConfigDict(extra="ignore")

    # Table of labels for training clips; empty (None once loaded) = published labels.
    use: Annotated[FilePath | None, BeforeValidator(lambda path: path or None)]


def relabelled(columns: pa.Table, classes: list[str], path: Path) -> pa.Table:
    """Return the manifest's columns with the labels of the table at `path`.

    Raises CorpusError when the table has other classes, or other published labels than the corpus.
    """
    table = open_labels(path)
    if table.metadata["classes"] != classes:
        found = f"{len(table.metadata['classes'])} others"
        raise CorpusError(f"{path}: classes: expected the {len(classes)} of the corpus, found {found}; enhance again")
    published, place = columns["labels"].combine_chunks(), pc.index_in(columns["clip_id"], table["clip_id"])
    place = place.combine_chunks() if isinstance(place, pa.ChunkedArray) else place
    held = place.is_valid()
    expected = table["published"].combine_chunks().take(place.filter(held))
    if not published.filter(held).equals(expected):
        ids = columns["clip_id"].filter(held).to_pylist()
        pairs = zip(ids, published.filter(held).to_pylist(), expected.to_pylist(), strict=True)
        reject(path, {"clips whose published labels have changed since": [i for i, a, b in pairs if a != b]})
    both = pa.concat_arrays([published, table["labels"].combine_chunks()])
    rows = pc.if_else(held, pc.add(place.cast(pa.int64()), len(columns)), pa.array(range(len(columns)), pa.int64()))
    return columns.set_column(columns.column_names.index("labels"), columns.schema.field("labels"), both.take(rows))


def identity_with(identity: str, path: Path | None) -> str:
    """Return a corpus's identity, extended by that of the table of labels at `path`, if any."""
    if path is None:
        return identity
    head = LABELS.read_head(path)
    about: LabelSource = {"table": path.name, "fold": head.metadata["fold"], "digest": head.digest}
    return json.dumps(json.loads(identity) | {_KEY: about}, sort_keys=True, ensure_ascii=False)


def labels_of(clips: ClipTable) -> LabelSource | None:
    """Return the description of a manifest's labels, or None where they are the published ones."""
    try:
        settings = json.loads(clips.metadata["corpus"])
    except json.JSONDecodeError:
        return None
    source: LabelSource | None = settings.get(_KEY) if isinstance(settings, dict) else None
    return source


def require_fold(clips: ClipTable, fold: str) -> None:
    """Raise CorpusError when the manifest's labels are those of another fold's training clips."""
    about = labels_of(clips)
    if about is not None and about["fold"] != fold:
        raise CorpusError(
            f"{clips.path}: labels: expected those published, or those of fold {fold}, found those of {about['table']}, in "
            f"which clips that fold {fold} tests may have labels that were added; set experiment.folds to "
            f"[{about['fold']}], or labels.use to ''"
        )
