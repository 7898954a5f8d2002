"""Artifact of a trained model: a folder with `weights.safetensors`, and `model.json` with all that prediction needs.

With `train.checkpoint_ensemble` there is also a file `epochs/<epoch>.safetensors` for each listed epoch, and the mean of
these predicts. Prediction needs nothing from params.yaml: the folder holds the model's params, the class list, the input's
metadata and normalisation.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artifacts.tables import metadata_digest
from pipeline.artifacts.weights import EPOCHS, WeightsSchema

MODEL = WeightsSchema(
    card="model.json",
    stage="train_*",
    metadata={
        "model": str,
        "params": dict,  # the model's own section, as validated
        "classes": list,
        "label_kind": str,
        "reads": str,  # frames or tokens
        "input": dict,  # of its input: n_mels and normalisation, or vocabulary size; see pipeline/models
        "source": str,  # digest of the vocabulary (tokens), or empty
        "front_end": dict,  # metadata of the front end behind the input
        "fold": str,
        "seed": int,
        "num_parameters": int,
        "clips_seen": int,
    },
)


@dataclass(frozen=True)
class TrainedModel:
    """An opened model folder: arrays by name, and the metadata."""

    path: Path
    weights: dict[str, np.ndarray]
    metadata: dict[str, Any]


def write_model(
    path: Path,
    weights: Mapping[str, np.ndarray],
    metadata: Mapping[str, Any],
    epochs: Mapping[int, Mapping[str, np.ndarray]] | None = None,
) -> None:
    """Write a model folder in one step, with the weights of `epochs` of an ensemble; `metadata` is without digests."""
    MODEL.write(path, weights, metadata, epochs or {})


def open_model(path: Path) -> TrainedModel:
    """Open a model folder, and check its metadata and the digest of its weights."""
    return TrainedModel(path, *MODEL.open(path))


def open_members(model: TrainedModel) -> Iterator[TrainedModel]:
    """Yield the models whose mean predicts: one per kept epoch, or the model itself where none is kept."""
    kept = sorted(map(int, model.metadata.get(EPOCHS, {})))
    for epoch in kept:
        yield replace(model, weights=MODEL.open_epoch(model.path, model.metadata, epoch))
    if not kept:
        yield model


def count_predicting(weights: Mapping[str, np.ndarray], epochs: Mapping[int, Mapping[str, np.ndarray]]) -> int:
    """Return the number of parameters that predict: of the weights, or of all kept epochs together."""
    members = list(epochs.values()) or [weights]
    return sum(array.size for member in members for array in member.values() if array.dtype.kind == "f")


def predicting_digest(metadata: Mapping[str, Any]) -> str:
    """Return the digest of the weights that predict: of their file, or of the digests of all kept epochs."""
    return metadata_digest(metadata[EPOCHS]) if EPOCHS in metadata else str(metadata["weights"])


def read_card(path: Path) -> dict[str, Any]:
    """Read the metadata of a model folder without its weights, and check its digest."""
    return MODEL.read_card(path)
