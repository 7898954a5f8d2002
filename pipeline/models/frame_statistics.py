"""Statistics of frames, and a support vector machine: how far a clip's average spectrum goes without any order in time.

Each mel band's mean, standard deviation, maximum and mean absolute change from frame to frame, standardised on the training
clips -> one support vector classifier a class with a radial kernel (Cortes and Vapnik, 1995), for one label or many.
One against the rest gives every class a logit of its own; scikit-learn's vote of class pairs gives none, and no better
accuracy on ESC-10. scikit-learn fits; prediction is plain NumPy.

Conventions: inputs are clips' frames (frame, mel) float32; features (clip, 4 * mel).
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import PositiveFloat

from pipeline.params import Params as BaseParams

READS = "frames"

UNSEEN_LOGIT = -30.0  # of a class that no training clip shows
SMALLEST_DEVIATION = 1e-3  # in the front end's units; below it a feature is constant, and stays unscaled


class Params(BaseParams):
    kind: Literal["frame_statistics"]
    penalty: PositiveFloat  # scikit-learn's C: what a clip on the wrong side costs
    kernel_width: PositiveFloat  # kernel exp(-|x - y|^2 * kernel_width / number of features); 1 = scikit-learn's "auto"


def fit(
    params: Params,
    inputs: Sequence[np.ndarray],
    targets: np.ndarray,
    *,
    input_facts: dict[str, Any],
    label_kind: str,
    seed: int,
) -> dict[str, np.ndarray]:
    """Fit on training clips; `targets` (clip, class) 0-1. Label kinds make no difference; nothing is drawn from `seed`.

    Returns `mean` and `scale` (feature,), `support` (vector, feature) standardised, `dual` (class, vector) and
    `intercepts` (class,).
    """
    from sklearn.svm import SVC

    features = describe(inputs)
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    scale = np.where(deviation > SMALLEST_DEVIATION, deviation, 1.0)
    # Rounded first to what is stored, so that the stored vectors are exactly those that the machine was fitted on.
    mean, scale = mean.astype(np.float32), scale.astype(np.float32)
    features = ((features - mean) / scale).astype(np.float32).astype(np.float64)
    num_clips, num_classes = targets.shape
    dual = np.zeros((num_classes, num_clips))
    intercepts = np.full(num_classes, UNSEEN_LOGIT)
    for number, wanted in enumerate(targets.T > 0.5):
        if wanted.all():
            intercepts[number] = -UNSEEN_LOGIT
        elif wanted.any():
            machine = SVC(C=params.penalty, kernel="rbf", gamma=params.kernel_width / features.shape[1])
            machine.fit(features, wanted)
            dual[number, machine.support_], intercepts[number] = machine.dual_coef_[0], machine.intercept_[0]
    used = np.flatnonzero(dual.any(axis=0))
    weights = {"support": features[used], "dual": dual[:, used], "intercepts": intercepts, "mean": mean, "scale": scale}
    return {name: values.astype(np.float32) for name, values in weights.items()}


def predict(params: Params, weights: dict[str, np.ndarray], inputs: Sequence[np.ndarray]) -> np.ndarray:
    """Return logits (clip, class) float32: the signed distances to the classes' margins, 1 on the margin itself."""
    features = (describe(inputs) - weights["mean"]) / weights["scale"]
    support = weights["support"].astype(np.float64)
    squared = (features**2).sum(axis=1)[:, None] - 2 * features @ support.T + (support**2).sum(axis=1)
    kernel = np.exp(np.maximum(squared, 0) * (-params.kernel_width / features.shape[1]))
    return np.asarray(kernel @ weights["dual"].T + weights["intercepts"], dtype=np.float32)


def describe(inputs: Sequence[np.ndarray]) -> np.ndarray:
    """Return mean, deviation, maximum and mean absolute change of each mel band, (clip, 4 * mel) float64."""
    rows = []
    for frames in inputs:
        x = frames.astype(np.float64)
        change = np.abs(np.diff(x, axis=0)).mean(axis=0) if len(x) > 1 else np.zeros(x.shape[1])
        rows.append(np.concatenate([x.mean(axis=0), x.std(axis=0), x.max(axis=0), change]))
    return np.stack(rows)
