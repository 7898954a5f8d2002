"""Near-duplicates of a corpus: pairs of clips that hold the same recording, in files that may differ.

Conventions: a row is a pair, `clip_id` before `other_id` in the order of the manifest. The pairs of one recording may lack
some: of several clips with the same frames, one stands for all.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.artifacts.settings import Metadata
from pipeline.artifacts.tables import Table, TableSchema


class DuplicatesMetadata(Metadata):
    """Metadata of the near-duplicates of a corpus."""

    searched: bool  # false: the search was switched off
    threshold: float  # smallest correlation of a pair


DuplicatesTable = Table[DuplicatesMetadata]

DUPLICATES = TableSchema(
    name="near-duplicates",
    version=1,
    stage="duplicates",
    columns={
        "clip_id": pa.string(),
        "other_id": pa.string(),
        "correlation": pa.float64(),  # of the log-mel frames, -1 to 1
        "lag": pa.float64(),  # seconds by which `clip_id` has later what `other_id` has; negative: earlier
        "identical": pa.bool_(),  # the frames are the same to the bit
    },
    metadata=DuplicatesMetadata,
)


def open_duplicates(path: Path) -> DuplicatesTable:
    """Open the near-duplicates of a corpus and check that correlations are in range, and that no clip is its own copy."""
    duplicates = DUPLICATES.open(path)
    correlations = duplicates["correlation"].to_numpy()
    wrong = ~(correlations >= duplicates.metadata["threshold"]) | ~(correlations <= 1)
    if wrong.any():
        expected = f"{duplicates.metadata['threshold']} to 1"
        raise DUPLICATES.error(path, "correlation", expected=expected, found=correlations[wrong][0])
    same = pc.equal(duplicates["clip_id"], duplicates["other_id"])
    if pc.any(same).as_py():
        own = duplicates["clip_id"].filter(same)[0].as_py()
        raise DUPLICATES.error(path, "other_id", expected="another clip", found=f"{own} twice")
    return duplicates


def pairs_of(duplicates: DuplicatesTable, clip_id: str) -> pa.Table:
    """Return the rows of a clip's pairs."""
    either = pc.or_(pc.equal(duplicates["clip_id"], clip_id), pc.equal(duplicates["other_id"], clip_id))
    return duplicates.columns.filter(either)
