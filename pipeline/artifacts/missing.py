"""Table of the clips that a corpus lists and that have no audio that can be read, whether or not the manifest keeps them."""

from pathlib import Path

import pyarrow as pa

from pipeline.artifacts.settings import Metadata
from pipeline.artifacts.tables import Table, TableSchema


class MissingMetadata(Metadata):
    """Metadata of the table."""

    corpus: str  # identity, as in the manifest
    listed: dict[str, int]  # set -> clips that the corpus lists in it, with and without audio


MISSING = TableSchema(
    name="missing",
    version=1,
    stage="corpus",
    columns={
        "clip_id": pa.string(),
        "source": pa.string(),  # file below the corpus root, where its audio would be
        "set": pa.string(),  # published set, else published fold; empty = the corpus has neither
        "reason": pa.string(),  # missing, or unreadable: it is there and cannot be read
    },
    metadata=MissingMetadata,
)


def open_missing(path: Path) -> Table[MissingMetadata]:
    """Open the table."""
    return MISSING.open(path)
