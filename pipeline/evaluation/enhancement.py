"""Label enhancement: add to clips' labels what an ontology calls for and scores confirm (PSLA: Gong, Chung and Glass, 2021).

Annotators of AudioSet mark "Speech" and leave out "Male speech", or the reverse. Two kinds of labels are added:

type 1   a direct child of a label that the clip has, where the clip lacks the child
type 2   any ancestor of a label that the clip has, where the clip lacks the ancestor

and only where the clip's score for it is above the class's threshold: the mean, the median or a low percentile of the scores
of the clips that have the label. Both kinds start from the published labels, and their union is added, so that nothing
depends on an order. A class that no clip has, has no threshold, and is never added.

The scores must be out of fold: a model that trained on a clip has learned what its labels leave out.

Conventions: scores (clip, class) in [0, 1], labels (clip, class) bool.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pipeline.artifacts.clips import ClipTable
from pipeline.artifacts.layout import Layout, RunId
from pipeline.artifacts.predictions import PREDICTIONS, open_predictions
from pipeline.corpora.ontology import Ontology
from pipeline.corpora.relabelling import UsedLabels
from pipeline.corpora.splitting import inner_fold_names
from pipeline.errors import CorpusError, ParamsError
from pipeline.evaluation.inner_folds import known_inner_folds, score_training_clips
from pipeline.grid import ExperimentParams
from pipeline.params import NameParam, TrackedPath

Threshold = Literal["mean", "median", "percentile_25", "percentile_10", "percentile_5"]

_PERCENTILES: dict[Threshold, float] = {"median": 50, "percentile_25": 25, "percentile_10": 10, "percentile_5": 5}
_ROWS = 65_536  # compared at once: bounds the memory that two million clips of 527 classes take


class LabelParams(UsedLabels, extra="forbid"):
    """The section `labels`: labels that are trained on, and settings of label enhancement."""

    enhance: list[NameParam]  # folds whose training labels are enhanced; their inner folds must be in experiment.folds
    models: Annotated[list[str], Field(min_length=1)]  # of the experiment, whose scores are averaged over all seeds
    ontology: TrackedPath
    types: Annotated[list[Literal[1, 2]], Field(min_length=1)]
    threshold: Threshold  # of the scores of the clips that have the label

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.use and self.enhance:
            raise ValueError(
                "use and enhance: expected one of them, since labels are enhanced from published ones; set enhance to []"
            )
        return self

    def check_against(self, experiment: ExperimentParams, num_inner_folds: int) -> None:
        """Raise ParamsError when the experiment lacks a model, or an inner fold, that enhancement needs."""
        for fold in self.enhance:
            lacking = [model for model in self.models if model not in experiment.models]
            if lacking:
                known = f"models of the experiment ({', '.join(experiment.models)})"
                raise ParamsError(f"labels.models: expected {known}, found {', '.join(lacking)}")
            inner_folds = inner_fold_names(fold, num_inner_folds)
            missing = [name for name in inner_folds if name not in experiment.folds]
            if missing:
                expected = (
                    f"in experiment.folds all inner folds of fold {fold}, {', '.join(inner_folds)} (split.num_folds)"
                )
                raise ParamsError(f"labels.enhance: expected {expected}, found none of {', '.join(missing)}")


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """Scores of a fold's training clips, each by models that trained neither on it nor on what the fold tests."""

    clip_ids: tuple[str, ...]
    scores: NDArray[np.float32]  # (clip, class)
    labels: NDArray[np.bool_]  # (clip, class) as published
    weights: tuple[str, ...]  # digests


@dataclass(frozen=True, eq=False)
class Enhancement:
    """Enhanced labels, and what was added."""

    labels: NDArray[np.bool_]  # (clip, class)
    thresholds: NDArray[np.float64]  # (class,); NaN without positives
    added: dict[int, NDArray[np.int64]]  # type -> (class,) clips; a label that both types call for counts for both


def enhance(
    scores: NDArray[np.float32],
    labels: NDArray[np.bool_],
    ontology: Ontology,
    types: Sequence[int],
    threshold: Threshold,
) -> Enhancement:
    """Add labels by the rules at the head of this module; nothing is ever taken away."""
    thresholds = class_thresholds(scores, labels, threshold)
    # From the label that a clip has (row) to the class that it may be given (column).
    calls = {1: ontology.children, 2: ontology.descendants.T}
    enhanced = labels.copy()
    added = {kind: np.zeros(labels.shape[1], dtype=np.int64) for kind in types}
    for start in range(0, len(labels), _ROWS):
        rows = slice(start, start + _ROWS)
        confirmed = (scores[rows] > thresholds) & ~labels[rows]  # never above NaN
        for kind in types:
            called = (labels[rows].astype(np.float32) @ calls[kind].astype(np.float32)) > 0
            new = called & confirmed
            enhanced[rows] |= new
            added[kind] += new.sum(axis=0)
    return Enhancement(enhanced, thresholds, added)


def missing_parents(labels: NDArray[np.bool_], ontology: Ontology) -> NDArray[np.int64]:
    """Return the number of clips (parent, child) that have a class and lack its direct parent; 0 for other pairs.

    These are certain errors, of type 2; PSLA counts them for kinds of speech.
    """
    counts = np.zeros(ontology.children.shape, dtype=np.int64)
    for start in range(0, len(labels), _ROWS):
        own = labels[start : start + _ROWS].astype(np.float32)
        counts += ((1 - own).T @ own).astype(np.int64)  # exact in float32: at most _ROWS
    return counts * ontology.children


def class_thresholds(
    scores: NDArray[np.float32], labels: NDArray[np.bool_], threshold: Threshold
) -> NDArray[np.float64]:
    """Return each class's threshold (class,) over the clips that have it, percentiles by linear interpolation."""
    values = np.full(labels.shape[1], np.nan)
    for position in range(labels.shape[1]):
        own = scores[labels[:, position], position].astype(np.float64)
        if own.size:
            values[position] = own.mean() if threshold == "mean" else np.percentile(own, _PERCENTILES[threshold])
    return values


def out_of_fold(
    params: LabelParams,
    experiment: ExperimentParams,
    fold: str,
    clips: ClipTable,
    layout: Layout,
) -> OutOfFold:
    """Gather the scores of a fold's training clips from the predictions of its parts.

    Raises CorpusError or ArtifactError when a clip has exactly one label or others than published, and when a clip was
    trained on by the model that scores it, is tested by several inner folds or by none, or belongs to what the fold tests.
    """
    if clips.metadata["label_kind"] != "many":
        found = "exactly one, which leaves no room for another"
        raise CorpusError(f"{clips.path}: label_kind: expected any number of labels a clip (many), found {found}")
    inner_folds = known_inner_folds(fold, experiment.folds)
    models = [model for name in params.models for model in experiment.model_ids if model.name == name]
    runs = list(product(models, experiment.seeds))
    tables = {
        inner: [open_predictions(layout.prediction(RunId(model, inner, seed))) for model, seed in runs]
        for inner in inner_folds
    }
    scored = score_training_clips(fold, tables, layout)
    return OutOfFold(
        scored.clip_ids,
        scored.scores.astype(np.float32),
        _published(clips, scored.clip_ids, scored.targets > 0, layout.predictions),
        tuple(str(table.metadata["weights"]) for own in tables.values() for table in own),
    )


def _published(
    clips: ClipTable, clip_ids: Sequence[str], targets: NDArray[np.bool_], predictions_path: Path
) -> NDArray[np.bool_]:
    """Return `targets`, which the predictions hold, if they are still the manifest's labels."""
    labels = dict(zip(clips.list("clip_id"), clips.list("labels"), strict=True))
    for clip, row in zip(clip_ids, targets, strict=True):
        found = np.flatnonzero(row).tolist()
        if labels.get(clip) != found:
            expected = f"{labels.get(clip)}, as {clips.path}"
            raise PREDICTIONS.error(predictions_path, f"targets of {clip}", expected=expected, found=found)
    return targets
