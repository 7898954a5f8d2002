"""Logits of a stored classical model."""

from collections.abc import Sequence

import numpy as np

from pipeline.artifacts.model import TrainedModel
from pipeline.evaluation.prediction import CLIPS_PER_BATCH, Predictor, params_of
from pipeline.models.registry import BASELINES
from pipeline.training.inputs import FRAMES_PER_BATCH, Inputs
from pipeline.vocabulary.batching import padded_batches


class ClassicalPredictor(Predictor):
    """A stored classical model, ready to predict."""

    def __init__(self, model: TrainedModel) -> None:
        params = params_of(model)
        self._weights, self._baseline = model.weights, BASELINES[params.kind](params)

    def predict(self, inputs: Inputs, clip_ids: Sequence[str]) -> np.ndarray:
        batches = [
            batch
            for first in range(0, len(clip_ids), CLIPS_PER_BATCH)
            for batch in padded_batches(
                clip_ids[first : first + CLIPS_PER_BATCH], inputs.num_frames, frames_per_batch=FRAMES_PER_BATCH
            )
        ]
        return np.concatenate([self._baseline.predict(self._weights, inputs.arrays(ids)) for ids in batches])
