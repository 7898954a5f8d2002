"""Training labels: the table that `labels.use` names, checked against the manifest and brought into one form.

It is a table of the stage `enhance`, for the training clips of one fold, or one that people or programs write
(`pipeline/corpora/label_tables.py`). Validation and test clips keep their published labels.
"""

import logging
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BeforeValidator, ConfigDict

from pipeline.artifacts.clips import ClipTable
from pipeline.artifacts.development import DevelopmentTable, TargetTable
from pipeline.artifacts.labels import open_labels
from pipeline.artifacts.training_labels import (
    TRAINING_LABELS,
    TrainingLabelsMetadata,
    TrainingLabelTable,
    open_training_labels,
)
from pipeline.corpora.base import reject
from pipeline.corpora.label_tables import is_of_a_stage, labels_as_columns, read_label_table
from pipeline.errors import ArtifactError, CorpusError
from pipeline.params import FilePath, Params

log = logging.getLogger(__name__)


class UsedLabels(Params):
    """The key of the section `labels` that the stage `corpus` needs."""

    model_config = ConfigDict(extra="ignore")

    # Table of labels for training clips; empty (None once loaded) = published labels.
    use: Annotated[FilePath | None, BeforeValidator(lambda path: path or None)]


def refresh_training_labels(
    used: Path | None, clips: ClipTable, path: Path, *, written_to: Path | None = None
) -> TrainingLabelTable:
    """Bring the table at `path` up to date with the one that is `used`, and return it; what is current is left untouched.

    With `written_to` a changed table is written there, and the one at `path` is left untouched. Raises CorpusError that
    names every row that cannot be used, and what to do.
    """
    columns, fold = (TRAINING_LABELS.arrow.empty_table(), "") if used is None else _read(used, clips)
    classes = clips.metadata["classes"]
    metadata: TrainingLabelsMetadata = {"classes": classes, "table": "" if used is None else used.name, "fold": fold}
    columns = columns.cast(TRAINING_LABELS.arrow).sort_by("clip_id").combine_chunks()
    try:
        current = open_training_labels(path)
        if current.metadata == metadata and current.columns.combine_chunks().equals(columns):
            return current
    except ArtifactError:
        pass  # missing or damaged: it is written anew
    TRAINING_LABELS.write(written_to or path, columns, metadata)
    if used is not None:
        log.info("%d clips are trained on the labels of %s", len(columns), used)
    return open_training_labels(written_to or path)


def require_fold(labels: TrainingLabelTable, fold: str) -> None:
    """Raise CorpusError when the labels are those of another fold's training clips."""
    own = labels.metadata["fold"]
    if own not in ("", fold):
        raise CorpusError(
            f"{labels.path}: labels: expected those published, or those of fold {fold}, found those of "
            f"{labels.metadata['table']}, which were made with models that saw clips that fold {fold} tests; set "
            f"experiment.folds to [{own}], or labels.use to ''"
        )


def require_trained(targets: TargetTable, development: DevelopmentTable, clips: ClipTable) -> None:
    """Raise CorpusError that names the classes of whose training clips the labels that are used leave none."""
    ids = development["clip_id"].filter(pc.equal(development["role"], "train"))
    published = clips["labels"].take(pc.index_in(ids, clips["clip_id"].combine_chunks())).combine_chunks()
    before = set(pc.unique(published.flatten()).to_pylist())
    rows = targets.columns.filter(pc.equal(development["role"], "train"))
    trained = set(pc.unique(rows["labels"].combine_chunks().flatten()).to_pylist())
    soft = rows["soft"].combine_chunks().flatten().to_numpy()
    classes = targets.metadata["classes"]
    if len(soft):
        trained |= set(np.flatnonzero((soft.reshape(-1, len(classes)) > 0).any(axis=0)).tolist())
    lost = [name for number, name in enumerate(classes) if number in before - trained]
    remedy = "the table of labels.use has taken them away; mend its rows, or leave the classes out of the corpus"
    reject(f"{targets.path}, fold {targets.metadata['fold']}", {"classes without a training clip": lost}, remedy)


def _read(path: Path, clips: ClipTable) -> tuple[pa.Table, str]:
    """Return the columns of a table of any kind, and the fold that it is for ("" = any)."""
    if not path.is_file():
        raise CorpusError(f"labels.use: expected a table of labels, found no file at {path}; set it to '' for none")
    return _read_enhanced(path, clips) if is_of_a_stage(path) else (read_label_table(path, clips), "")


def _read_enhanced(path: Path, clips: ClipTable) -> tuple[pa.Table, str]:
    """Read a table of the stage `enhance`.

    Raises CorpusError when the table has other classes, or other published labels than the corpus.
    """
    table, classes = open_labels(path), clips.metadata["classes"]
    if table.metadata["classes"] != classes:
        found = f"{len(table.metadata['classes'])} others"
        raise CorpusError(f"{path}: classes: expected the {len(classes)} of the corpus, found {found}; enhance again")
    places = pc.index_in(table["clip_id"], clips["clip_id"].combine_chunks())
    held = table.columns.filter(places.is_valid())
    published = clips["labels"].take(places.drop_null()).to_pylist()
    rows = zip(held["clip_id"].to_pylist(), published, held["published"].to_pylist(), strict=True)
    changed = [clip for clip, now, before in rows if now != before]
    reject(path, {"clips whose published labels have changed since": changed}, "enhance again")
    return labels_as_columns(held["clip_id"].to_pylist(), held["labels"].to_pylist(), clips), table.metadata["fold"]
