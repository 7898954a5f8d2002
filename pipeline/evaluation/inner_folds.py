"""Out-of-fold scores: those of a fold's training clips, each by models of the inner fold that tests it.

A model that trained on a clip has learned what its labels leave out, and is surer of it than of others.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.artifacts.layout import Layout
from pipeline.artifacts.predictions import PREDICTIONS, PredictionTable
from pipeline.artifacts.splits import clips_of, open_split
from pipeline.corpora.base import reject
from pipeline.corpora.splitting import inner_fold_names
from pipeline.errors import CorpusError
from pipeline.evaluation.ensemble import ScoredClips, average_predictions


def known_inner_folds(fold: str, folds: Sequence[str]) -> list[str]:
    """Return the inner folds of a fold that are among an experiment's folds."""
    return [name for name in inner_fold_names(fold, len(folds)) if name in folds]


def score_training_clips(fold: str, tables: Mapping[str, Sequence[PredictionTable]], layout: Layout) -> ScoredClips:
    """Return the training clips of a fold, scored by the mean of the `tables` of the inner fold that tests them.

    `tables` holds the predictions of each inner fold. Raises CorpusError or ArtifactError when a clip was trained on by the
    model that scores it, is tested by several inner folds or by none, or belongs to what the fold tests.
    """
    _check_inner_folds(fold, list(tables), layout)
    members = []
    for inner, own in tables.items():
        members.append(average_predictions(own, "test"))
        tested = set(clips_of(open_split(layout.split(inner)), "test"))
        if trained := [clip for clip in members[-1].clip_ids if clip not in tested]:
            raise PREDICTIONS.error(
                own[0].path,
                f"clip {trained[0]}",
                expected="one that the inner fold tests",
                found="one that it does not",
            )
    return ScoredClips(
        fold=fold,
        classes=members[0].classes,
        label_kind=members[0].label_kind,
        clip_ids=tuple(clip for member in members for clip in member.clip_ids),
        scores=np.concatenate([member.scores for member in members]),
        targets=np.concatenate([member.targets for member in members]),
    )


def _check_inner_folds(fold: str, inner_folds: Sequence[str], layout: Layout) -> None:
    """Raise CorpusError unless the inner folds share their training clips and each of these is tested exactly once."""
    tested: Counter[str] = Counter()
    used: set[str] = set()
    unused: set[str] = set()  # what the fold itself tests, and its copies
    for inner in inner_folds:
        split = open_split(layout.split(inner))
        tested.update(clips_of(split, "test"))
        used.update(clips_of(split, "train", "validation", "test"))
        unused.update(clips_of(split, "excluded"))
    problems = {
        "training clips that no inner fold tests (put all of them into experiment.folds)": sorted(used - set(tested)),
        "training clips that several inner folds test": sorted(clip for clip, count in tested.items() if count > 1),
        "clips that one inner fold excludes and another uses": sorted(used & unused),
    }
    reject(f"{layout.splits}: {', '.join(inner_folds) or 'no inner fold'} of fold {fold}", problems)
    if not tested:
        raise CorpusError(f"{layout.splits}: expected inner folds of fold {fold} in experiment.folds, found none")
