"""Near-duplicates in the roles of a fold: clips of one recording are given one content, so that a split joins them.

The column `content` of a manifest says which clips have the same audio: `pipeline/corpora/splitting.py` draws these into one
role, and where published roles separate them, excludes those that a later role copies. Clips that pairs of near-duplicates
link, directly or through others, get the content of the first of them.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.artifacts.clips import ClipTable
from pipeline.artifacts.duplicates import DUPLICATES, DuplicatesTable
from pipeline.artifacts.splits import Role
from pipeline.corpora.splitting import exclude_copies, first_linked


class SeparatedPair(NamedTuple):
    """A pair of near-duplicates with two roles in one fold."""

    clip_id: str
    role: Role
    other_id: str
    other_role: Role

    def __str__(self) -> str:
        return f"{self.clip_id} ({self.role}) and {self.other_id} ({self.other_role})"


def join_copies(clips: ClipTable, duplicates: DuplicatesTable) -> ClipTable:
    """Return the manifest in which all clips of one recording have the same content.

    Raises ArtifactError where the manifest lacks a clip of a pair.
    """
    if not len(duplicates):
        return clips
    ones, others = (_rows(clips, duplicates, name) for name in ("clip_id", "other_id"))
    first = first_linked(zip(ones.tolist(), others.tolist(), strict=True))
    rows = np.arange(len(clips))
    rows[list(first)] = list(first.values())
    contents = clips["content"].take(pa.array(rows))
    columns = clips.columns.set_column(clips.columns.column_names.index("content"), "content", contents)
    return replace(clips, columns=columns)


def find_copied(joined: ClipTable, roles: Sequence[Role]) -> list[str]:
    """Return the clips, of a manifest with joined contents, whose recording is in a later role too (excluded is none)."""
    used = [row for row, role in enumerate(roles) if role != "excluded"]
    table = replace(joined, columns=joined.columns.take(pa.array(used, pa.int64())))
    kept = [roles[row] for row in used]
    exclude_copies(table, kept)
    return [clip for clip, role in zip(table.list("clip_id"), kept, strict=True) if role == "excluded"]


def find_separated(clips: ClipTable, duplicates: DuplicatesTable, roles: Sequence[Role]) -> list[SeparatedPair]:
    """Return the pairs whose clips have different roles, neither of them excluded, in their order."""
    named = pa.array(roles, pa.string())
    ours, theirs = (
        named.take(pa.array(_rows(clips, duplicates, name))).to_pylist() for name in ("clip_id", "other_id")
    )
    rows = zip(duplicates.list("clip_id"), ours, duplicates.list("other_id"), theirs, strict=True)
    return [pair for pair in map(SeparatedPair._make, rows) if len({pair.role, pair.other_role, "excluded"}) == 3]


def _rows(clips: ClipTable, duplicates: DuplicatesTable, column: str) -> np.ndarray:
    """Return the rows in the manifest of the clips that a column of the pairs names."""
    rows = pc.index_in(duplicates[column].combine_chunks(), clips["clip_id"].combine_chunks())
    if rows.null_count:
        missing = duplicates[column].filter(rows.is_null())[0].as_py()
        raise DUPLICATES.error(duplicates.path, column, expected=f"clips of {clips.path}", found=missing)
    return np.asarray(rows.to_numpy(), dtype=np.int64)
