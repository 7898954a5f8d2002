"""Manifest of a corpus: one row per clip, with the place of its audio, labels, group, fold and content digest."""

from pathlib import Path
from typing import Literal, NotRequired, TypedDict

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.artifacts.settings import Metadata
from pipeline.artifacts.tables import Table, TableSchema

LabelKind = Literal["one", "many"]  # exactly one class per clip, or any number of them
Link = Literal["softmax", "sigmoid"]  # from a model's logits to its probabilities of classes

# Of models that are trained without another: classical ones, and networks with the label kind's own loss.
LINKS: dict[LabelKind, Link] = {"one": "softmax", "many": "sigmoid"}


class LogitsMetadata(Metadata):
    """Base of the metadata of what has logits: models and predictions."""

    label_kind: LabelKind
    link: NotRequired[Link]  # absent = that of the label kind


def link_of(metadata: LogitsMetadata) -> Link:
    """Return the function from logits to probabilities."""
    return metadata.get("link", LINKS[metadata["label_kind"]])


class ClipsMetadata(Metadata):
    """Metadata of the manifest."""

    corpus: str  # identity: the settings that choose its clips, as JSON
    classes: list[str]
    label_kind: LabelKind
    licence: str
    class_ids: NotRequired[list[str]]  # published ids of the classes, such as /m/09x0r, where the corpus has any


class ClipRecord(TypedDict):
    """One row of the manifest; see the columns below."""

    clip_id: str
    source: str
    member: str
    offset: int
    size: int
    start: float
    duration: float
    labels: list[int]
    group: str
    fold: str
    content: str
    unknown: list[int]
    weight: float


ClipTable = Table[ClipsMetadata]

CLIPS = TableSchema(
    name="clips",
    version=3,
    stage="corpus",
    columns={
        "clip_id": pa.string(),
        "source": pa.string(),  # file below the corpus root
        "member": pa.string(),  # member of `source` when that is a tar or Parquet file, else empty
        "offset": pa.int64(),  # of the member's first byte in the tar, its row in the Parquet file; 0 for a file of its own
        "size": pa.int64(),  # of the member, in bytes; 0 for a file of its own
        "start": pa.float64(),  # seconds from the beginning of the source
        "duration": pa.float64(),  # seconds; 0 = to the end of the source
        "labels": pa.list_(pa.uint16()),  # positions in the class list, ascending
        "group": pa.string(),  # recording, song or video that the clip was cut from; a group has one role
        "fold": pa.string(),  # published fold or split ("train", "test"); empty = none published
        "content": pa.string(),  # digest of the encoded audio, packed or not; empty = the file is missing
        "unknown": pa.list_(pa.uint16()),  # classes of which nobody has said whether the clip has them, ascending
        "weight": pa.float64(),  # published sampling weight, in any unit; 0 = none published
    },
    metadata=ClipsMetadata,
)


def open_clips(path: Path) -> ClipTable:
    """Open the manifest and check that ids are unique and labels lie inside the class list."""
    clips = CLIPS.open(path)
    ids = clips["clip_id"]
    num_repeated = len(ids) - pc.count_distinct(ids).as_py()
    if num_repeated:
        raise CLIPS.error(path, "clip_id", expected="unique ids", found=f"{num_repeated} repeated")
    num_classes = len(clips.metadata["classes"])
    for name in ("labels", "unknown"):
        highest = pc.max(clips[name].combine_chunks().flatten()).as_py()
        if highest is not None and highest >= num_classes:
            raise CLIPS.error(path, name, expected=f"below {num_classes}", found=highest)
    within = pc.not_equal(clips["member"], "")
    misplaced = pc.or_(pc.less(clips["offset"], 0), pc.less(clips["size"], 0))
    outside = pc.and_(pc.invert(within), pc.or_(pc.not_equal(clips["offset"], 0), pc.not_equal(clips["size"], 0)))
    if (num_wrong := pc.sum(pc.or_(misplaced, outside)).as_py() or 0) > 0:
        expected = "offset and size for members of a tar or Parquet file, 0 and 0 for others"
        raise CLIPS.error(path, "offset and size", expected=expected, found=f"other values for {num_wrong} clips")
    if clips.metadata["label_kind"] not in ("one", "many"):
        raise CLIPS.error(path, "metadata label_kind", expected="one or many", found=clips.metadata["label_kind"])
    return clips
