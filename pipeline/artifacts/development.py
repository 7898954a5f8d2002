"""Development set of a fold: its training and validation clips that have frames, in two tables, and their token sequences.

    data/development/clips/<fold>.parquet                role of each clip, and what identifies its frames
    data/development/targets/<fold>.parquet              labels of the same clips
    data/development/tokens/<vocabulary>/<fold>.parquet  their token sequences, in the schema of those of all clips
    data/supervision/<vocabulary>/<fold>/                labels of training clips, for a vocabulary that is fitted on them

All that a fold learns follows from them: they hold nothing of test clips, so that added ones leave them as they are, to the
byte. Labels are in tables of their own, since pretraining and most vocabularies read none.
"""

from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.artifacts.clips import CLIPS, ClipTable, LabelKind
from pipeline.artifacts.settings import SETTINGS, Metadata
from pipeline.artifacts.spectrogram import INDEX, IndexMetadata, SpectrogramMetadata
from pipeline.artifacts.splits import Role, SplitMetadata
from pipeline.artifacts.tables import Table, TableSchema
from pipeline.artifacts.training_labels import TrainingLabelTable

M = TypeVar("M", bound=Metadata)

DEVELOPMENT_ROLES: tuple[Role, ...] = ("train", "validation")

# Columns of the spectrogram's index by which a clip's frames are known, with the version of their computation.
_OF_FRAMES = ("key", "num_frames", "sum", "sum_of_squares")


class DevelopmentMetadata(Metadata):
    """Metadata of a development set."""

    fold: str
    front_end: SpectrogramMetadata  # of the frames
    version: str  # of the frames: what params and code made them, as one digest


class TargetsMetadata(Metadata):
    """Metadata of the labels of a development set."""

    fold: str
    classes: list[str]  # of the whole corpus
    label_kind: LabelKind


DevelopmentTable = Table[DevelopmentMetadata]
TargetTable = Table[TargetsMetadata]

DEVELOPMENT = TableSchema(
    name="development set",
    version=1,
    stage="development",
    columns={"clip_id": pa.string(), "role": pa.string(), **{name: INDEX.columns[name] for name in _OF_FRAMES}},
    metadata=DevelopmentMetadata,
)

TARGETS = TableSchema(
    name="targets",
    version=3,
    stage="development",
    columns={  # `labels` and `unknown` are positions in the class list, ascending; see `pipeline/artifacts/clips.py`
        "clip_id": pa.string(),
        "labels": pa.list_(pa.uint16()),
        "unknown": pa.list_(pa.uint16()),
        "weight": pa.float64(),
        "group": pa.string(),  # of the clip, which augmentation may draw partners from
        "soft": pa.list_(pa.float32()),  # see `pipeline/artifacts/training_labels.py`
    },
    metadata=TargetsMetadata,
)


def write_development(path: Path, split: Table[SplitMetadata], index: Table[IndexMetadata]) -> DevelopmentTable:
    """Write the development set of a fold from its roles and the spectrogram's index, in the order of the split."""
    roles = pc.is_in(split["role"], pa.array(DEVELOPMENT_ROLES, pa.string()))
    columns = split.columns.filter(roles).select(["clip_id", "role"])
    frames = _rows_of(INDEX, index, columns["clip_id"])
    for name in _OF_FRAMES:
        columns = columns.append_column(name, frames[name])
    columns = columns.filter(pc.equal(frames["status"], "ok"))
    metadata: DevelopmentMetadata = {
        "fold": split.metadata["fold"],
        "front_end": index.metadata["front_end"],
        "version": index.metadata["version"],
        SETTINGS: {**index.metadata.get(SETTINGS, {}), **split.metadata.get(SETTINGS, {})},
    }
    DEVELOPMENT.write(path, columns.combine_chunks(), metadata)
    return open_development(path, fold=metadata["fold"])


def write_targets(
    path: Path, development: DevelopmentTable, clips: ClipTable, replacing: TrainingLabelTable | None = None
) -> None:
    """Write the labels of a development set; those of training clips as `replacing` has them, if it has them."""
    columns = _rows_of(CLIPS, clips, development["clip_id"])
    columns = target_columns(columns, development["role"], None if replacing is None else replacing.columns)
    metadata: TargetsMetadata = {
        "fold": development.metadata["fold"],
        "classes": clips.metadata["classes"],
        "label_kind": clips.metadata["label_kind"],
        SETTINGS: clips.metadata.get(SETTINGS, {}),
    }
    TARGETS.write(path, columns.combine_chunks(), metadata)


def target_columns(clips: pa.Table, roles: pa.ChunkedArray, replacing: pa.Table | None) -> pa.Table:
    """Return the columns of TARGETS for rows of the manifest with these roles; see `write_targets`."""
    none = pa.ListArray.from_arrays(pa.array([0] * (len(clips) + 1), pa.int32()), pa.array([], pa.float32()))
    columns = clips.append_column("soft", none).select(list(TARGETS.columns))
    if replacing is None or not len(replacing):
        return columns
    places = pc.index_in(columns["clip_id"], replacing["clip_id"].combine_chunks())
    replaced = pc.and_(places.is_valid(), pc.equal(roles, "train"))
    rows = pc.if_else(
        replaced, pc.add(places.cast(pa.int64()), len(columns)), pa.array(range(len(columns)), pa.int64())
    )
    for name in ("labels", "unknown", "soft"):
        both = pa.concat_arrays([table[name].combine_chunks() for table in (columns, replacing)])
        columns = columns.set_column(columns.column_names.index(name), name, both.take(rows))
    return columns


def open_development(path: Path, *, fold: str) -> DevelopmentTable:
    """Open the development set of a fold and check that no clip of another role is in it."""
    development = DEVELOPMENT.open(path)
    if development.metadata["fold"] != fold:
        raise DEVELOPMENT.error(path, "metadata fold", expected=fold, found=development.metadata["fold"])
    other = sorted(set(development["role"].unique().to_pylist()) - set(DEVELOPMENT_ROLES))
    if other:
        raise DEVELOPMENT.error(path, "role", expected=" or ".join(DEVELOPMENT_ROLES), found=", ".join(other))
    return development


def open_targets(path: Path, development: DevelopmentTable) -> TargetTable:
    """Open the labels of a development set and check that they are of its clips and inside the class list."""
    targets = TARGETS.open(path)
    if not targets["clip_id"].equals(development["clip_id"]):
        raise TARGETS.error(path, "clip_id", expected=f"the clips of {development.path}", found="other clips")
    num_classes = len(targets.metadata["classes"])
    for name in ("labels", "unknown"):
        highest = pc.max(targets[name].combine_chunks().flatten()).as_py()
        if highest is not None and highest >= num_classes:
            raise TARGETS.error(path, name, expected=f"below {num_classes}", found=highest)
    return targets


def write_training_targets(path: Path, development: DevelopmentTable, targets: TargetTable) -> TargetTable:
    """Write the labels of the training clips of a development set, in its order, and return them."""
    columns = targets.columns.filter(pc.equal(development["role"], "train"))
    TARGETS.write(path, columns.combine_chunks(), targets.metadata)
    return open_training_targets(path, development)


def open_training_targets(path: Path, development: DevelopmentTable) -> TargetTable:
    """Open labels of training clips and check that they are of those of the development set, and of no other clip."""
    targets = TARGETS.open(path)
    training = development["clip_id"].filter(pc.equal(development["role"], "train"))
    if not targets["clip_id"].equals(training):
        expected = f"the training clips of {development.path}"
        raise TARGETS.error(path, "clip_id", expected=expected, found="other clips")
    return targets


def require_frames(development: DevelopmentTable, index: Table[IndexMetadata]) -> None:
    """Raise ArtifactError unless the frames of an index are those that the development set was written for."""
    expected = f"as in {index.path}"
    for name in ("front_end", "version"):
        recorded, current = development.metadata[name], index.metadata[name]
        if recorded != current:
            raise DEVELOPMENT.error(development.path, f"metadata {name}", expected=expected, found="another")
    names = ["clip_id", *_OF_FRAMES]
    own, current = development.columns.select(names), _rows_of(INDEX, index, development["clip_id"]).select(names)
    if not own.equals(current):
        differing = zip(own.to_pylist(), current.to_pylist(), strict=True)
        clip = next(row["clip_id"] for row, other in differing if row != other)
        raise DEVELOPMENT.error(development.path, f"frames of clip {clip}", expected=expected, found="others")


def require_copy(development: DevelopmentTable, index: Table[IndexMetadata]) -> None:
    """Raise ArtifactError unless the frames of an index are of copies of the development set, by the same front end."""
    expected = f"that of {development.path}"
    if index.metadata["front_end"] != development.metadata["front_end"]:
        raise INDEX.error(index.path, "metadata front_end", expected=expected, found="another")
    rows = _rows_of(INDEX, index, development["clip_id"])
    if not rows["key"].equals(development["key"]):
        pairs = zip(
            development["clip_id"].to_pylist(), pc.equal(rows["key"], development["key"]).to_pylist(), strict=True
        )
        clip = next(clip for clip, same in pairs if not same)
        raise INDEX.error(index.path, f"audio of clip {clip}", expected=expected, found="other audio")


def _rows_of(schema: TableSchema[M], table: Table[M], clip_ids: pa.ChunkedArray) -> pa.Table:
    """Return the rows of clips, in the order given. Raises ArtifactError where the table lacks one."""
    places = pc.index_in(clip_ids, table["clip_id"].combine_chunks())
    if places.null_count:
        clip = clip_ids.filter(places.is_null())[0].as_py()
        raise schema.error(table.path, f"clip {clip}", expected="a row", found="none")
    return table.columns.take(places)
