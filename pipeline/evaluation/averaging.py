"""Mean of several models' logits, as the mean of their probabilities.

Imports no torch, which classical models do not need.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.artifacts.clips import Link


def average_logits(members: Sequence[np.ndarray], link: Link) -> np.ndarray:
    """Return logits (clip, class) float32 whose probabilities are the mean of those of the members' logits.

    Those of a single member are returned as they are.

    With the link softmax they are logarithms of the probabilities. Computed in logarithms, so that no probability, however
    small, becomes zero.
    """
    if len(members) == 1:
        return members[0]
    logits = np.stack(members).astype(np.float64)  # (member, clip, class)
    if link == "softmax":
        logs = logits - np.logaddexp.reduce(logits, axis=2, keepdims=True)
        mean = np.logaddexp.reduce(logs, axis=0) - np.log(len(members))
    else:
        yes, no = -np.logaddexp(0, -logits), -np.logaddexp(0, logits)
        mean = np.logaddexp.reduce(yes, axis=0) - np.logaddexp.reduce(no, axis=0)
    return np.asarray(mean, dtype=np.float32)
