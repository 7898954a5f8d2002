"""Roles of all clips in one fold: train, validation, test, or excluded.

A clip is excluded where its audio is that of a clip with a later role (its label would leak into training): the same bytes
or, with `split.near_duplicates: exclude`, a near-duplicate; and, in an inner fold, where the outer one does not train on it.
"""

from pathlib import Path
from typing import Literal

import pyarrow as pa

from pipeline.artifacts.settings import Metadata
from pipeline.artifacts.tables import Table, TableSchema

Role = Literal["train", "validation", "test", "excluded"]
ROLES: tuple[Role, ...] = ("train", "validation", "test", "excluded")


class SplitMetadata(Metadata):
    """Metadata of a fold's roles."""

    fold: str
    seed: int
    rule: str  # where the roles come from, for people


SPLIT = TableSchema(
    name="split",
    version=2,
    stage="split",
    columns={"clip_id": pa.string(), "role": pa.string()},
    metadata=SplitMetadata,
)


def open_split(path: Path) -> Table[SplitMetadata]:
    """Open the table of a fold's roles and check that every role is known."""
    split = SPLIT.open(path)
    unknown = sorted(set(split["role"].unique().to_pylist()) - set(ROLES))
    if unknown:
        raise SPLIT.error(path, "role", expected=", ".join(ROLES), found=", ".join(unknown))
    return split


def clips_of(split: Table, *roles: Role) -> list[str]:
    """Return the ids of the clips that have one of the roles, in manifest order."""
    return [i for i, role in zip(split.list("clip_id"), split.list("role"), strict=True) if role in roles]
