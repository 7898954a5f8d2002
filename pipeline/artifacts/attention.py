"""Maps of what a network of frames looks at, attention or Grad-CAM, for the test clips that the report shows.

Conventions: a map is (frame, mel), and its mean is 1: of attention, 1 is the weight of each position if all had the same. A
Grad-CAM map is 0 where nothing speaks for the class; NaN marks frames and bands that the network does not read. A clip's map
is that of the model of the fold that tests it.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.artifacts.settings import Metadata
from pipeline.artifacts.tables import Table, TableSchema

ROLLOUT = "rollout"  # attention rollout: the product over all layers
GRAD_CAM = "grad_cam"  # Grad-CAM of the likeliest class


class AttentionMetadata(Metadata):
    """Metadata of a model's attention maps."""

    model: str
    seed: int
    layer: str  # ROLLOUT or GRAD_CAM; see pipeline/evaluation/explanation.py
    weights: dict[str, str]  # fold -> digest of the weights, as in predictions


AttentionTable = Table[AttentionMetadata]

ATTENTION = TableSchema(
    name="attention",
    version=1,
    stage="attention",
    columns={
        "clip_id": pa.string(),
        "fold": pa.string(),
        "map": pa.list_(pa.list_(pa.float32())),  # (frame, mel)
    },
    metadata=AttentionMetadata,
)


def open_attention(path: Path) -> AttentionTable:
    """Open a model's maps and check that all frames of a map have the same number of bands."""
    table = ATTENTION.open(path)
    for clip, values in zip(table.list("clip_id"), table.list("map"), strict=True):
        if len({len(frame) for frame in values}) != 1:
            raise ATTENTION.error(path, f"map of {clip}", expected="(frame, mel)", found="frames of unequal length")
    return table


def attention_maps(table: Table) -> dict[str, np.ndarray]:
    """Return clip_id -> map (frame, mel) float32."""
    pairs = zip(table.list("clip_id"), table.list("map"), strict=True)
    return {clip: np.asarray(values, dtype=np.float32) for clip, values in pairs}
