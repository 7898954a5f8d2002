"""Majority baseline: the class frequencies of the training clips, for every clip."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from pipeline.artifacts.model import Reads
from pipeline.models.base import FrontEndValues, ModelParams
from pipeline.models.baselines.base import Baseline, Setting, Weights


class MajorityParams(ModelParams):
    kind: Literal["majority"]

    @property
    def reads(self) -> Reads:
        return "frames"

    def require_front_end(self, front_end: FrontEndValues) -> None:
        """Accept every front end: no frame is read."""


class Majority(Baseline):
    Params = MajorityParams

    def fit(self, inputs: Sequence[np.ndarray], targets: np.ndarray, setting: Setting) -> Weights:
        """Return `logits` (class,) of the class frequencies; inputs and seed are not used."""
        known = (~np.isnan(targets)).sum(axis=0).astype(np.float32)
        share = (np.nansum(targets, axis=0) + 0.5) / (known + 1)  # smoothed, so that no class has probability 0
        one = setting.label_kind == "one"
        return {"logits": (np.log(share) if one else np.log(share / (1 - share))).astype(np.float32)}

    def predict(self, weights: Weights, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Return the same logits for every clip."""
        return np.tile(weights["logits"], (len(inputs), 1))
