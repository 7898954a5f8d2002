"""A trained model as a folder: `weights.safetensors`, and `model.json` with everything that prediction needs.

Nothing of params.yaml is needed to predict: the folder holds the model's params, the class list, the input's facts and
normalisation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artifacts.weights import WeightsSchema

MODEL = WeightsSchema(
    card="model.json",
    stage="train_*",
    facts={
        "model": str,
        "params": dict,  # the model's own section, as validated
        "classes": list,
        "label_kind": str,
        "reads": str,  # frames or tokens
        "input": dict,  # what it was built for: n_mels and normalisation, or vocabulary size; see pipeline/models
        "source": str,  # digest of the vocabulary (tokens), or empty
        "front_end": dict,  # facts of the front end behind the input
        "fold": str,
        "seed": int,
        "num_parameters": int,
        "clips_seen": int,
        "seconds": float,  # of training
    },
)


@dataclass(frozen=True)
class TrainedModel:
    """An opened model folder: arrays by name, and the facts beside them."""

    path: Path
    weights: dict[str, np.ndarray]
    facts: dict[str, Any]


def write_model(path: Path, weights: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
    """Write a model folder in one step; `facts` without the weights' digest."""
    MODEL.write(path, weights, facts)


def open_model(path: Path) -> TrainedModel:
    """Open a model folder and check its facts and that the weights are those written with them."""
    return TrainedModel(path, *MODEL.open(path))


def read_card(path: Path) -> dict[str, Any]:
    """Read the facts of a model folder without its weights, and check that they are as written."""
    return MODEL.read_card(path)
