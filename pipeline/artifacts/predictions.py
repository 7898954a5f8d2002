"""Predictions of one trained model for one fold's clips, with their targets; all metrics are computed from them.

Those of a run with kept epochs also hold the logits of its variants (`pipeline/evaluation/variants.py`), a column each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import pyarrow as pa

from pipeline.artifacts.clips import LogitsMetadata
from pipeline.artifacts.layout import VARIANTS
from pipeline.artifacts.model import Reads
from pipeline.artifacts.tables import Table, TableSchema


class VariantMetadata(TypedDict):
    """What differs between the metadata of a variant and those of its model."""

    num_parameters: int
    weights: str  # digest


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
    variants: NotRequired[dict[str, VariantMetadata]]  # by name, each with a column of logits; of runs with kept epochs


PredictionTable = Table[PredictionsMetadata]

_NUMBERS = pa.list_(pa.float32())  # one per class

PREDICTIONS = TableSchema(
    name="predictions",
    version=1,
    stage="evaluate_*",
    columns={
        "clip_id": pa.string(),
        "role": pa.string(),
        "logits": _NUMBERS,  # before the link
        "targets": _NUMBERS,  # 0 or 1, or NaN where it is unknown
    },
    metadata=PredictionsMetadata,
)


def logits_column(variant: str) -> str:
    """Return the name of the column with a variant's logits; those of the model itself are the variant ""."""
    return f"logits_{variant}" if variant else "logits"


def write_predictions(path: Path, columns: Mapping[str, Sequence[object]], metadata: PredictionsMetadata) -> None:
    """Write predictions, with a column of logits more for each variant of the metadata."""
    _schema(metadata).write(path, columns, metadata)


def open_predictions(path: Path) -> PredictionTable:
    """Open predictions and check that each clip has one finite logit per class, and one target: finite, or NaN (unknown)."""
    schema = _schema(PREDICTIONS.read_metadata(path))
    predictions = schema.open(path)
    num_classes = len(predictions.metadata["classes"])
    for name, kind in schema.columns.items():
        if kind != _NUMBERS:
            continue
        flat = predictions[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        if flat.size != len(predictions) * num_classes:
            found = f"{flat.size} values for {len(predictions)} clips"
            raise PREDICTIONS.error(path, name, expected=f"{num_classes} a clip", found=found)
        if np.isinf(flat).any() or (name != "targets" and np.isnan(flat).any()):
            raise PREDICTIONS.error(path, name, expected="finite numbers", found="NaN or infinity")
    return predictions


def variant_tables(predictions: PredictionTable) -> dict[str, PredictionTable]:
    """Return the predictions of each variant as a table of its own, by name; none where the run keeps no epochs."""
    return {name: _variant_table(predictions, name) for name in _variants(predictions.metadata)}


def _variant_table(predictions: PredictionTable, variant: str) -> PredictionTable:
    columns = {name: predictions[name] for name in PREDICTIONS.columns} | {
        "logits": predictions[logits_column(variant)]
    }
    metadata = predictions.metadata.copy()
    own = metadata.pop("variants")[variant]
    metadata["num_parameters"], metadata["weights"] = own["num_parameters"], own["weights"]
    return Table(predictions.path, pa.table(columns), metadata)


def _schema(metadata: PredictionsMetadata) -> TableSchema[PredictionsMetadata]:
    """Return the schema of a table with these metadata."""
    columns = {logits_column(name): _NUMBERS for name in _variants(metadata)}
    return replace(PREDICTIONS, columns={**PREDICTIONS.columns, **columns})


def _variants(metadata: PredictionsMetadata) -> list[str]:
    """Return the variants in the order of tables, which JSON does not keep."""
    return [name for name in VARIANTS if name in metadata.get("variants", {})]


def matrix(predictions: Table, name: str) -> np.ndarray:
    """Return `logits` or `targets` as an array (clip, class) float32."""
    flat = predictions[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat, dtype=np.float32).reshape(len(predictions), -1)
