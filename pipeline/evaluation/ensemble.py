"""Scores of clips from stored predictions, and their average over several models or seeds.

Conventions: scores are probabilities (clip, class), see `pipeline/evaluation/metric_functions.py`. An ensemble is the
unweighted mean of its members' probabilities, so a member may be anything that wrote predictions: frames, tokens, or another
seed.

Why not logits: they are on each model's own scale. A support vector machine's lie near -1 and 1, a transformer's without
label smoothing near -10 and 10, and a mean of the two is the transformer alone; probabilities are one scale for all.
Probabilities are also what deep ensembles average (Lakshminarayanan et al., NeurIPS 2017, "Simple and Scalable Predictive
Uncertainty Estimation"), and those of PSLA and of the Audio Spectrogram Transformer (Gong et al., 2021).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.artifacts.clips import LabelKind, link_of
from pipeline.artifacts.predictions import PREDICTIONS, PredictionTable, matrix
from pipeline.artifacts.splits import Role
from pipeline.evaluation.metric_functions import DECISION_THRESHOLD, Bools, Floats, decide, to_scores


@dataclass(frozen=True, eq=False)
class ScoredClips:
    """Clips of one fold with scores and truth; rows of the two arrays follow `clip_ids`."""

    fold: str
    classes: tuple[str, ...]
    label_kind: LabelKind
    clip_ids: tuple[str, ...]
    scores: NDArray[np.float64]  # (clip, class) probabilities
    targets: NDArray[np.float32]  # (clip, class) 0 or 1, or NaN where it is unknown
    thresholds: float | Floats = DECISION_THRESHOLD  # of decisions, label kind many: one for all classes, or (class,)

    @property
    def decisions(self) -> Bools:
        """The decisions (clip, class), of unknown labels too."""
        return decide(self.scores, self.label_kind, self.thresholds)


def score_clips(predictions: PredictionTable, role: Role) -> ScoredClips:
    """Return the clips of one role with their scores. Raises ArtifactError when there is none."""
    rows = np.flatnonzero(np.array(predictions.list("role"), dtype=object) == role)
    if not rows.size:
        found = ", ".join(sorted(set(predictions.list("role")))) or "no clips"
        raise PREDICTIONS.error(predictions.path, "role", expected=f"clips of role {role}", found=found)
    metadata, clip_ids = predictions.metadata, predictions.list("clip_id")
    return ScoredClips(
        fold=metadata["fold"],
        classes=tuple(metadata["classes"]),
        label_kind=metadata["label_kind"],
        clip_ids=tuple(clip_ids[row] for row in rows),
        scores=to_scores(matrix(predictions, "logits")[rows], link_of(metadata)),
        targets=matrix(predictions, "targets")[rows],
    )


def average_predictions(tables: Sequence[PredictionTable], role: Role) -> ScoredClips:
    """Average the probabilities of several models' predictions for the same clips of one fold, clip by clip.

    Rows are matched by clip_id and come in the first table's order. Raises ArtifactError, naming the table that differs
    from the first, unless all agree on fold, classes, label kind, clips and targets.
    """
    if not tables:
        raise ValueError("tables: expected at least one, found none")
    members = [score_clips(table, role) for table in tables]
    first = members[0]
    total = np.zeros_like(first.scores)
    for table, member in zip(tables, members, strict=True):
        for field in ("fold", "classes", "label_kind"):
            expected, found = getattr(first, field), getattr(member, field)
            if expected != found:
                raise PREDICTIONS.error(table.path, field, expected=f"{expected}, as {tables[0].path}", found=found)
        order = _rows_of(first, member, tables[0], table)
        same = (member.targets[order] == first.targets) | (np.isnan(member.targets[order]) & np.isnan(first.targets))
        unequal = np.flatnonzero(~same.all(axis=1))
        if unequal.size:
            clip = first.clip_ids[unequal[0]]
            raise PREDICTIONS.error(table.path, f"targets of {clip}", expected=f"as {tables[0].path}", found="others")
        total += member.scores[order]
    return ScoredClips(first.fold, first.classes, first.label_kind, first.clip_ids, total / len(members), first.targets)


def _rows_of(
    first: ScoredClips, member: ScoredClips, first_table: PredictionTable, table: PredictionTable
) -> list[int]:
    """Return where each clip of `first` stands in `member`."""
    rows = {clip: row for row, clip in enumerate(member.clip_ids)}
    missing = [clip for clip in first.clip_ids if clip not in rows]
    if missing or len(rows) != len(first.clip_ids):
        found = f"{len(member.clip_ids)} clips, {len(missing)} missing" + (f" ({missing[0]}, ...)" if missing else "")
        expected = f"the {len(first.clip_ids)} clips of {first_table.path}"
        raise PREDICTIONS.error(table.path, "clip_id", expected=expected, found=found)
    return [rows[clip] for clip in first.clip_ids]
