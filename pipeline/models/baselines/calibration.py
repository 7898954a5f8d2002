"""Temperature scaling of baseline logits.

Ensembles average probabilities, in which an underconfident model has no weight next to an overconfident one. The scale is
fitted on training clips, each scored by a model fitted on others (Platt, 1999, with the slope only).

Conventions: logits (clip, class); wanted and known (clip, class) bool.
"""

from collections.abc import Callable

import numpy as np

SMALLEST_SCALE, LARGEST_SCALE = 0.1, 1000.0  # for perfectly separated classes the optimum is infinite
_BLOCKS = 16


def halves(num_clips: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the (fit, held-out) clips of two halves; neighbours, often of one recording, mostly stay together."""
    second = (np.arange(num_clips) * min(_BLOCKS, num_clips) // max(num_clips, 1)) % 2 == 1
    return [(np.flatnonzero(second != half), np.flatnonzero(second == half)) for half in (False, True)]


def fit_scale(
    logits_at: Callable[[float], np.ndarray], wanted: np.ndarray, label_kind: str, known: np.ndarray | None = None
) -> float:
    """Return the maximum-likelihood scale for the clips' labels, those that are `known`; None = all.

    `logits_at` returns the logits under a scale.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_expit, log_softmax

    def loss(log_scale: float) -> float:
        logits = logits_at(float(np.exp(log_scale))).astype(np.float64)
        if label_kind == "one":
            return -float(log_softmax(logits, axis=1)[wanted].mean())
        likelihoods = np.where(wanted, log_expit(logits), log_expit(-logits))
        return -float((likelihoods if known is None else likelihoods[known]).mean())

    found = minimize_scalar(loss, bounds=(np.log(SMALLEST_SCALE), np.log(LARGEST_SCALE)), method="bounded")
    return float(np.exp(found.x))
