"""A trained model as a folder: `weights.safetensors`, and `model.json` with everything that prediction needs.

With `train.checkpoint_ensemble` there is a file `epochs/<epoch>.safetensors` for each of them besides, and these predict
together. Nothing of params.yaml is needed to predict: the folder holds the model's params, the class list, the input's
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
        "input": dict,  # what it was built for: n_mels and normalisation, or vocabulary size; see pipeline/models
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
    """An opened model folder: arrays by name, and the metadata beside them."""

    path: Path
    weights: dict[str, np.ndarray]
    metadata: dict[str, Any]


def write_model(
    path: Path,
    weights: Mapping[str, np.ndarray],
    metadata: Mapping[str, Any],
    epochs: Mapping[int, Mapping[str, np.ndarray]] | None = None,
) -> None:
    """Write a model folder in one step; `metadata` without the weights' digest. `epochs` are the weights that predict."""
    MODEL.write(path, weights, metadata, epochs or {})


def open_model(path: Path) -> TrainedModel:
    """Open a model folder and check its metadata and that the weights are those written with them."""
    return TrainedModel(path, *MODEL.open(path))


def open_members(model: TrainedModel) -> Iterator[TrainedModel]:
    """Yield the models whose mean predicts: one for each kept epoch, or, where none is kept, the model itself."""
    kept = sorted(map(int, model.metadata.get(EPOCHS, {})))
    for epoch in kept:
        yield replace(model, weights=MODEL.open_epoch(model.path, model.metadata, epoch))
    if not kept:
        yield model


def count_predicting(weights: Mapping[str, np.ndarray], epochs: Mapping[int, Mapping[str, np.ndarray]]) -> int:
    """Return how many parameters predict: those of the weights, or, where epochs were kept, of all these together."""
    members = list(epochs.values()) or [weights]
    return sum(array.size for member in members for array in member.values() if array.dtype.kind == "f")


def predicting_digest(metadata: Mapping[str, Any]) -> str:
    """Return what names the weights that predict: their file's digest, or that of the digests of all kept epochs."""
    return metadata_digest(metadata[EPOCHS]) if EPOCHS in metadata else str(metadata["weights"])


def read_card(path: Path) -> dict[str, Any]:
    """Read the metadata of a model folder without its weights, and check that they are as written."""
    return MODEL.read_card(path)
