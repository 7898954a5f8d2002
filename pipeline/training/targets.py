"""Class targets and sampling weights of clips, from the manifest or from the labels of a development set.

A target is 1 for a class that a clip has, 0 for one that it has not, and NaN for one that is unknown. NaN goes through the
arithmetic of smoothing and mix-up by itself: a mixture with a clip whose label is unknown has an unknown label. Losses and
metrics leave NaN out.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.artifacts.clips import ClipTable
from pipeline.artifacts.development import TargetTable


def class_targets(clips: ClipTable | TargetTable, clip_ids: Sequence[str]) -> np.ndarray:
    """Return targets (clip, class) float32 of 0, 1 and NaN (unknown) for these clips, in order."""
    columns = (clips.list(name) for name in ("labels", "unknown"))
    positions = dict(zip(clips.list("clip_id"), zip(*columns, strict=True), strict=True))
    targets = np.zeros((len(clip_ids), len(clips.metadata["classes"])), dtype=np.float32)
    for row, clip in enumerate(clip_ids):
        labels, unknown = positions[clip]
        targets[row, unknown] = np.nan
        targets[row, labels] = 1
    return targets


def sampling_weights(clips: TargetTable, clip_ids: Sequence[str]) -> np.ndarray | None:
    """Return the published sampling weights (clip,) float64 of these clips, in order; None where none is published."""
    by_clip = dict(zip(clips.list("clip_id"), clips.list("weight"), strict=True))
    weights = np.array([by_clip[clip] for clip in clip_ids], dtype=np.float64)
    return weights if weights.any() else None
