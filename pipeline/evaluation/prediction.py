"""Logits from a stored model, with nothing but the model's own folder and the clips' frames or tokens.

Under torchrun the processes share a network's clips and each returns all logits; a classical model's they compute each.
Imports no torch: classical models predict without it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from pipeline.artifacts.model import TrainedModel
from pipeline.models.base import ModelParams
from pipeline.models.registry import validate_model_params
from pipeline.registry import Registry
from pipeline.training.inputs import Inputs
from pipeline.training.trainers import way_of

CLIPS_PER_BATCH = 64


class Predictor(ABC):
    """A stored model, ready to predict. Several threads may predict at once."""

    @abstractmethod
    def __init__(self, model: TrainedModel) -> None: ...

    @abstractmethod
    def predict(self, inputs: Inputs, clip_ids: Sequence[str]) -> np.ndarray:
        """Return logits (clip, class) float32 for these clips, in order."""

    def predict_variants(self, inputs: Inputs, clip_ids: Sequence[str]) -> dict[str, np.ndarray]:
        """Return logits by variant (`pipeline/evaluation/variants.py`); those of `predict` are the variant ""."""
        return {"": self.predict(inputs, clip_ids)}


PREDICTORS: "Registry[type[Predictor]]" = Registry(
    "way of predicting",
    {
        "network": "pipeline.evaluation.network_prediction:NetworkPredictor",
        "classical": "pipeline.evaluation.classical_prediction:ClassicalPredictor",
    },
)


def open_predictor(model: TrainedModel) -> Predictor:
    """Prepare a stored model for prediction."""
    return PREDICTORS[way_of(params_of(model).kind)](model)


def describe_model(model: TrainedModel) -> str:
    """Return a stored model's kind and the kinds of its parts, for messages."""
    section = model.metadata["params"]
    parts = [f"{name} {section[name]['kind']}" for name in ("input", "stem", "encoder", "head") if name in section]
    if window := section.get("window"):
        parts.append(f"windows of {window['length']:g} s")
    return " with ".join(
        [f"the kind {section['kind']}", ", ".join(parts)] if parts else [f"the kind {section['kind']}"]
    )


def params_of(model: TrainedModel) -> ModelParams:
    """Return the checked params that a stored model was built by."""
    return validate_model_params(model.metadata["model"], model.metadata["params"], model.path / "model.json")
