"""The manifest: which clips there are, where their audio lies, what they are called, and who recorded them."""

from pathlib import Path
from typing import Literal

import pyarrow as pa

from pipeline.artifacts.tables import Table, TableSchema

LabelKind = Literal["one", "many"]  # exactly one class a clip, or any number of them

CLIPS = TableSchema(
    name="clips",
    version=1,
    stage="corpus",
    columns={
        "clip_id": pa.string(),
        "source": pa.string(),  # file below the corpus root
        "member": pa.string(),  # member of `source` when that is a tar file, else empty
        "start": pa.float64(),  # seconds from the beginning of the source
        "duration": pa.float64(),  # seconds; 0 = to the end of the source
        "labels": pa.list_(pa.uint16()),  # positions in the class list, ascending
        "group": pa.string(),  # recording, song or video that the clip was cut from; never straddles roles
        "fold": pa.string(),  # published fold or split ("train", "test"); empty = none published
        "content": pa.string(),  # digest of the encoded audio; empty = the file is missing
    },
    facts={"corpus": str, "classes": list, "label_kind": str, "licence": str},
)


def open_clips(path: Path) -> Table:
    """Open the manifest and check that ids are unique and labels lie inside the class list."""
    clips = CLIPS.open(path)
    ids = clips["clip_id"]
    if len(ids.unique()) != len(ids):
        raise CLIPS.error(path, "clip_id", expected="unique ids", found=f"{len(ids) - len(ids.unique())} repeated")
    flat = clips["labels"].combine_chunks().flatten()
    num_classes = len(clips.facts["classes"])
    if len(flat) and max(flat.to_pylist()) >= num_classes:
        raise CLIPS.error(path, "labels", expected=f"below {num_classes}", found=max(flat.to_pylist()))
    if clips.facts["label_kind"] not in ("one", "many"):
        raise CLIPS.error(path, "fact label_kind", expected="one or many", found=clips.facts["label_kind"])
    return clips
