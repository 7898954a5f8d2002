"""Class targets, sampling weights and groups of clips, from the manifest or from the labels of a development set.

A target is 1 for a class that a clip has, 0 for one that it has not, a probability where a clip has soft labels, and NaN
where it is unknown. NaN goes through the
arithmetic of smoothing and mix-up by itself: a mixture with a clip whose label is unknown has an unknown label. Losses and
metrics leave NaN out.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.artifacts.clips import ClipTable, LabelKind
from pipeline.artifacts.development import TargetTable


def class_targets(clips: ClipTable | TargetTable, clip_ids: Sequence[str]) -> np.ndarray:
    """Return targets (clip, class) float32 of 0, 1 and NaN (unknown) for these clips, in order.

    Those of a clip with soft labels are their probabilities.
    """
    columns = [clips.list(name) for name in ("labels", "unknown")]
    columns.append(clips.list("soft") if "soft" in clips.columns.column_names else [[]] * len(clips))
    positions = dict(zip(clips.list("clip_id"), zip(*columns, strict=True), strict=True))
    targets = np.zeros((len(clip_ids), len(clips.metadata["classes"])), dtype=np.float32)
    for row, clip in enumerate(clip_ids):
        labels, unknown, soft = positions[clip]
        targets[row, unknown] = np.nan
        targets[row, labels] = 1
        if soft:
            targets[row] = soft
    return targets


def targets_by_clip(clips: ClipTable | TargetTable, clip_ids: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the targets (class,) of these clips by id; see `class_targets`."""
    return dict(zip(clip_ids, class_targets(clips, clip_ids), strict=True))


def decide_soft(targets: np.ndarray, label_kind: LabelKind) -> np.ndarray:
    """Return targets of 0, 1 and NaN: of a clip with soft labels the likeliest class, or where it has several all from 1/2.

    Without soft labels, these are the same targets.
    """
    soft = ((targets > 0) & (targets < 1)).any(axis=1)
    if not soft.any():
        return targets
    decided = targets.copy()
    if label_kind == "one":
        decided[soft] = np.eye(targets.shape[1], dtype=targets.dtype)[targets[soft].argmax(axis=1)]
    else:
        decided[soft] = np.where(np.isnan(targets[soft]), np.nan, targets[soft] >= 0.5)
    return decided


def group_names(clips: TargetTable, clip_ids: Sequence[str]) -> list[str]:
    """Return the names of the groups of these clips, in order."""
    by_clip = dict(zip(clips.list("clip_id"), clips.list("group"), strict=True))
    return [by_clip[clip] for clip in clip_ids]


def sampling_weights(clips: TargetTable, clip_ids: Sequence[str]) -> np.ndarray | None:
    """Return the published sampling weights (clip,) float64 of these clips, in order; None where none is published."""
    by_clip = dict(zip(clips.list("clip_id"), clips.list("weight"), strict=True))
    weights = np.array([by_clip[clip] for clip in clip_ids], dtype=np.float64)
    return weights if weights.any() else None
