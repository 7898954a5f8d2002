"""Frame-statistics classifier: support vector machines on per-band statistics, without order in time.

Each mel band's mean, standard deviation, maximum and mean absolute change from frame to frame, standardised on the training
clips -> `pipeline/models/baselines/kernel_classifier.py`, for one label or many.

Conventions: inputs are clips' frames (frame, mel) float32; features (clip, 4 * mel).
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import PositiveFloat

from pipeline.artifacts.model import Reads
from pipeline.models.base import ModelParams
from pipeline.models.baselines.base import Baseline, Setting, Weights
from pipeline.models.baselines.kernel_classifier import fit_one_vs_rest, require_room, score, support_vectors

WHERE = "models.*.kind frame_statistics"  # of settings, for messages


class FrameStatisticsParams(ModelParams):
    kind: Literal["frame_statistics"]
    penalty: PositiveFloat  # scikit-learn's C: the cost of margin violations
    kernel_width: PositiveFloat  # kernel exp(-|x - y|^2 * kernel_width / number of features); 1 = scikit-learn's "auto"

    @property
    def reads(self) -> Reads:
        return "frames"

    def require_room(self, num_clips: int) -> None:
        require_room(num_clips, 1, WHERE)


class FrameStatistics(Baseline):
    Params = FrameStatisticsParams
    params: FrameStatisticsParams

    def fit(self, inputs: Sequence[np.ndarray], targets: np.ndarray, setting: Setting) -> Weights:
        """Return the arrays of `fit_one_vs_rest`; only the fit on many clips depends on the seed."""
        self.params.require_room(len(inputs))
        return fit_one_vs_rest(
            extract_features(inputs),
            np.arange(len(targets)),
            targets,
            support_vectors(self.params.penalty),
            kernel_width=self.params.kernel_width,
            label_kind=setting.label_kind,
            seed=setting.seed,
        )

    def predict(self, weights: Weights, inputs: Sequence[np.ndarray]) -> np.ndarray:
        return score(weights, extract_features(inputs), kernel_width=self.params.kernel_width)


def extract_features(inputs: Sequence[np.ndarray]) -> np.ndarray:
    """Return mean, standard deviation, maximum and mean absolute change of each band, (clip, 4 * mel) float64."""
    rows = []
    for frames in inputs:
        x = frames.astype(np.float64)
        change = np.abs(np.diff(x, axis=0)).mean(axis=0) if len(x) > 1 else np.zeros(x.shape[1])
        rows.append(np.concatenate([x.mean(axis=0), x.std(axis=0), x.max(axis=0), change]))
    return np.stack(rows)
