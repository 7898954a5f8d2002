"""Class targets of clips, from the manifest or from the labels of a development set."""

from collections.abc import Sequence

import numpy as np

from pipeline.artifacts.clips import ClipTable
from pipeline.artifacts.development import TargetTable


def class_targets(clips: ClipTable | TargetTable, clip_ids: Sequence[str]) -> np.ndarray:
    """Return 0-1 targets (clip, class) float32 for these clips, in order."""
    labels = dict(zip(clips.list("clip_id"), clips.list("labels"), strict=True))
    targets = np.zeros((len(clip_ids), len(clips.metadata["classes"])), dtype=np.float32)
    for row, clip in enumerate(clip_ids):
        targets[row, labels[clip]] = 1
    return targets
