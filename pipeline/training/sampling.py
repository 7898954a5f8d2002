"""Samplers: the clips that an epoch visits, and their order.

`shuffled` visits every training clip once. `balanced` draws as many clips, with replacement, a clip's probability in
proportion to the sum over its labels of 1 / (training clips with that label), as PSLA and AST do (Gong, Chung and Glass,
2021, arXiv 2102.01243). The labels are the manifest's, of this fold's training clips, counted here: the originals read the
weights from a file beside the list of clips, which may be of another list.

What balance means: with one label per clip, every class comes equally often. With several, a class comes oftener than that by
what the other labels of its clips weigh, so a class that accompanies many rare ones stays ahead. Clips without a label count
as a class of their own; the original weight of such a clip is 0, and it is never seen.
Balance helps a test set that is balanced itself, and may hurt one as skewed as the training clips (arXiv 2307.00079).

Conventions: targets (clip, class) 0-1 float32. Draws come from torch's global generator, which training seeds by epoch, so
every process of a run draws the same rows and a resumed run draws them again.
"""

from typing import Literal

import torch
from torch import Tensor

Sampling = Literal["shuffled", "balanced"]


def draw_rows(targets: Tensor, sampling: Sampling) -> Tensor:
    """Return the rows (clip,) int64 of one epoch, as many as there are clips."""
    num_clips = len(targets)
    if sampling == "shuffled":
        return torch.randperm(num_clips)
    # By hand, since torch.multinomial takes 2^24 clips at most.
    ends = clip_weights(targets).cumsum(0)
    places = torch.rand(num_clips, dtype=torch.float64) * ends[-1]
    return torch.searchsorted(ends, places, right=True).clamp(max=num_clips - 1)


def clip_weights(targets: Tensor) -> Tensor:
    """Return how likely each clip is to be drawn, up to one factor: (clip,) float64, all above 0."""
    weights = (targets @ (1 / targets.sum(0).clamp(min=1))).double()
    unlabelled = weights == 0
    return weights.masked_fill(unlabelled, 1 / max(1, int(unlabelled.sum())))
