"""Samplers of training clips: shuffled, or class-balanced with replacement.

`shuffled` visits every training clip once. `balanced` draws the same number of clips with replacement, a clip's probability
in proportion to the sum over its labels of 1 / (training clips with that label), as PSLA and AST do (Gong, Chung and Glass,
2021, arXiv 2102.01243). The weights are computed here, from the manifest's labels of this fold's training clips, unless the
corpus publishes weights of its own (the originals read them from a separate file; `pipeline/corpora/datafile.py`). Labels
that are unknown count as labels that a clip has not.

With one label per clip, all classes are drawn equally often. With several, a class is drawn more often by the weights of the
other labels of its clips, so classes that occur together with rare ones stay more frequent. Clips without a label count as a
class of their own; in the original their weight is 0 and they are never drawn. Balanced sampling helps on balanced test
sets, and may hurt on those with the class distribution of the training clips (arXiv 2307.00079).

Conventions: targets (clip, class) of 0, 1 and NaN (unknown), float32. Draws come from torch's global generator, which
training seeds by epoch, so every process of a run draws the same rows and a resumed run draws them again.
"""

from typing import Literal

import torch
from torch import Tensor

Sampling = Literal["shuffled", "balanced"]


def draw_rows(targets: Tensor, sampling: Sampling, published: Tensor | None = None) -> Tensor:
    """Return the rows (clip,) int64 of one epoch, of the same number as there are clips.

    `published` are the corpus's own weights (clip,) float64 for balanced sampling; a clip of weight 0 is never drawn.
    """
    num_clips = len(targets)
    if sampling == "shuffled":
        return torch.randperm(num_clips)
    # Not torch.multinomial, which takes at most 2^24 clips.
    ends = (clip_weights(targets) if published is None else published).cumsum(0)
    places = torch.rand(num_clips, dtype=torch.float64) * ends[-1]
    return torch.searchsorted(ends, places, right=True).clamp(max=num_clips - 1)


def draw_versions(num_clips: int, num_copies: int, probability: float, seed: int) -> list[int]:
    """Return what each clip is read from in an epoch: 0 = itself, or with this probability any of its copies, from 1.

    The draws are of a generator of their own, so that all else is drawn as without copies.
    """
    generator = torch.Generator().manual_seed(seed)
    copied = torch.rand(num_clips, generator=generator) < probability
    chosen = torch.randint(1, num_copies + 1, (num_clips,), generator=generator)
    versions: list[int] = (chosen * copied).tolist()
    return versions


def clip_weights(targets: Tensor) -> Tensor:
    """Return the sampling weight of each clip, unnormalised: (clip,) float64, all above 0."""
    positives = targets.nan_to_num(0) if targets.isnan().any() else targets  # a copy for all classes is large
    weights = (positives @ (1 / positives.sum(0).clamp(min=1))).double()
    unlabelled = weights == 0
    return weights.masked_fill(unlabelled, 1 / max(1, int(unlabelled.sum())))
