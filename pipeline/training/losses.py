"""Classification losses, chosen by the label kind of the corpus.

Conventions: logits and targets (batch, class); targets may be soft (mix-up, smoothing). The result is the mean over the
batch.
"""

import torch.nn.functional as F
from torch import Tensor

from pipeline.artifacts.clips import LabelKind


def classification_loss(logits: Tensor, targets: Tensor, label_kind: LabelKind) -> Tensor:
    """Cross entropy against soft targets (one label per clip), or mean binary cross entropy over classes (many)."""
    if label_kind == "one":
        return -(targets * F.log_softmax(logits, dim=1)).sum(1).mean()
    return F.binary_cross_entropy_with_logits(logits, targets)


def smooth_labels(targets: Tensor, smoothing: float, label_kind: LabelKind) -> Tensor:
    """Interpolate targets by `smoothing` towards the uniform target: 1 / classes (one), or 1 / 2 (many)."""
    uninformed = 1 / targets.shape[1] if label_kind == "one" else 0.5
    return targets * (1 - smoothing) + smoothing * uninformed
