"""Predictions of one trained model for one fold's clips, with their targets; all metrics are computed from them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.artifacts.clips import LogitsMetadata
from pipeline.artifacts.model import Reads
from pipeline.artifacts.tables import Table, TableSchema


class PredictionsMetadata(LogitsMetadata):
    """Metadata of predictions: those of the model too, so that whoever compares predictions needs no model."""

    model: str
    fold: str
    seed: int
    classes: list[str]
    reads: Reads
    params: dict[str, Any]  # the model's own section, as validated
    num_parameters: int
    clips_seen: int
    weights: str  # digest of those that predict


PredictionTable = Table[PredictionsMetadata]

PREDICTIONS = TableSchema(
    name="predictions",
    version=1,
    stage="evaluate_*",
    columns={
        "clip_id": pa.string(),
        "role": pa.string(),
        "logits": pa.list_(pa.float32()),  # one per class, before the link
        "targets": pa.list_(pa.float32()),  # one per class, 0 or 1, or NaN where it is unknown
    },
    metadata=PredictionsMetadata,
)


def open_predictions(path: Path) -> PredictionTable:
    """Open predictions and check that each clip has one finite logit per class, and one target: finite, or NaN (unknown)."""
    predictions = PREDICTIONS.open(path)
    num_classes = len(predictions.metadata["classes"])
    for name in ("logits", "targets"):
        flat = predictions[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        if flat.size != len(predictions) * num_classes:
            found = f"{flat.size} values for {len(predictions)} clips"
            raise PREDICTIONS.error(path, name, expected=f"{num_classes} a clip", found=found)
        if np.isinf(flat).any() or (name == "logits" and np.isnan(flat).any()):
            raise PREDICTIONS.error(path, name, expected="finite numbers", found="NaN or infinity")
    return predictions


def matrix(predictions: Table, name: str) -> np.ndarray:
    """Return `logits` or `targets` as an array (clip, class) float32."""
    flat = predictions[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat, dtype=np.float32).reshape(len(predictions), -1)
