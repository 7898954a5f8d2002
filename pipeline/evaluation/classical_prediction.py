"""Logits of a stored classical model."""

from collections.abc import Sequence

import numpy as np

from pipeline.artifacts.model import TrainedModel
from pipeline.evaluation.prediction import CLIPS_PER_BATCH, params_of
from pipeline.models.registry import BASELINES
from pipeline.training.inputs import Inputs


def predict(model: TrainedModel, inputs: Inputs, clip_ids: Sequence[str]) -> np.ndarray:
    """Return logits (clip, class) float32 for these clips, in order."""
    params = params_of(model)
    baseline = BASELINES[params.kind](params)
    batches = [clip_ids[i : i + CLIPS_PER_BATCH] for i in range(0, len(clip_ids), CLIPS_PER_BATCH)]
    return np.concatenate([baseline.predict(model.weights, inputs.arrays(ids)) for ids in batches])
