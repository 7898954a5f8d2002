"""Attention maps of a transformer over frames, for the test clips that the report shows.

Conventions: a map is (frame, mel), in units of even attention: 1 is what each position would get of equal parts, NaN what no
whole patch holds. It is that of the clip's fold: the model that was not trained on it.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.artifacts.tables import Table, TableSchema

ROLLOUT = "rollout"  # all layers multiplied up

ATTENTION = TableSchema(
    name="attention",
    version=1,
    stage="attention",
    columns={
        "clip_id": pa.string(),
        "fold": pa.string(),
        "map": pa.list_(pa.list_(pa.float32())),  # (frame, mel)
    },
    metadata={
        "model": str,
        "seed": int,
        "layer": str,  # ROLLOUT; see pipeline/evaluation/attention.py
        "weights": dict,  # fold -> digest of the weights, as in predictions
    },
)


def open_attention(path: Path) -> Table:
    """Open a model's maps and check that each has as many bands in all frames."""
    table = ATTENTION.open(path)
    for clip, values in zip(table.list("clip_id"), table.list("map"), strict=True):
        if len({len(frame) for frame in values}) != 1:
            raise ATTENTION.error(path, f"map of {clip}", expected="(frame, mel)", found="frames of unequal length")
    return table


def attention_maps(table: Table) -> dict[str, np.ndarray]:
    """Return clip_id -> map (frame, mel) float32."""
    pairs = zip(table.list("clip_id"), table.list("map"), strict=True)
    return {clip: np.asarray(values, dtype=np.float32) for clip, values in pairs}
