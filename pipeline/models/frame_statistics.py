"""Statistics of frames, and a support vector machine: how far a clip's average spectrum goes without any order in time.

Each mel band's mean, standard deviation, maximum and mean absolute change from frame to frame, standardised on the training
clips -> `pipeline/models/machines.py`, for one label or many.

Conventions: inputs are clips' frames (frame, mel) float32; features (clip, 4 * mel).
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import PositiveFloat

from pipeline.models.baseline import Setting
from pipeline.models.machines import fit_machines, score, support_vectors
from pipeline.params import Params as BaseParams

READS = "frames"


class Params(BaseParams):
    kind: Literal["frame_statistics"]
    penalty: PositiveFloat  # scikit-learn's C: what a clip on the wrong side costs
    kernel_width: PositiveFloat  # kernel exp(-|x - y|^2 * kernel_width / number of features); 1 = scikit-learn's "auto"


def fit(params: Params, inputs: Sequence[np.ndarray], targets: np.ndarray, setting: Setting) -> dict[str, np.ndarray]:
    """Fit on training clips; nothing is drawn from the seed. Returns what `fit_machines` does."""
    clips, learn = np.arange(len(targets)), support_vectors(params.penalty)
    return fit_machines(
        describe(inputs), clips, targets, learn, kernel_width=params.kernel_width, label_kind=setting.label_kind
    )


def predict(params: Params, weights: dict[str, np.ndarray], inputs: Sequence[np.ndarray]) -> np.ndarray:
    """Return logits (clip, class) float32."""
    return score(weights, describe(inputs), kernel_width=params.kernel_width)


def describe(inputs: Sequence[np.ndarray]) -> np.ndarray:
    """Return mean, deviation, maximum and mean absolute change of each mel band, (clip, 4 * mel) float64."""
    rows = []
    for frames in inputs:
        x = frames.astype(np.float64)
        change = np.abs(np.diff(x, axis=0)).mean(axis=0) if len(x) > 1 else np.zeros(x.shape[1])
        rows.append(np.concatenate([x.mean(axis=0), x.std(axis=0), x.max(axis=0), change]))
    return np.stack(rows)
