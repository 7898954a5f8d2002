"""Choice of the clips that pages show: classes in turn, by hash within a class, and the most confident mistakes.

`attention` computes maps for the clips that the report will show, so both choose them here.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.ensemble import ScoredClips
from pipeline.evaluation.experiment_predictions import ExperimentPredictions


@dataclass(frozen=True)
class ScoredExperiment:
    """Every model's test clips by (model, fold), seeds averaged; computed once, for choosing and for showing."""

    models: tuple[str, ...]
    folds: tuple[str, ...]
    scored: Mapping[tuple[str, str], ScoredClips]
    fold_of: Mapping[str, str]  # the first fold that tests a clip


@dataclass(frozen=True)
class ShownClips:
    """The test clips that the report shows, in order; one may be in both."""

    examples: tuple[str, ...]
    mistakes: tuple[str, ...]

    @property
    def all(self) -> list[str]:
        """Return each clip once."""
        return list(dict.fromkeys([*self.examples, *self.mistakes]))


def score_experiment(predictions: ExperimentPredictions) -> ScoredExperiment:
    """Average the seeds of every model on every fold."""
    models, folds = predictions.models, predictions.params.folds
    scored = {(model, fold): predictions.scored(model, fold) for model in models for fold in folds}
    fold_of: dict[str, str] = {}
    for fold in folds:
        for clip in scored[models[0], fold].clip_ids:
            fold_of.setdefault(clip, fold)
    return ScoredExperiment(tuple(models), tuple(folds), scored, fold_of)


def choose_shown(scores: ScoredExperiment, headline: Sequence[str], *, examples: int, mistakes: int) -> ShownClips:
    """Choose so many examples, and so many mistakes of the `headline` models."""
    return ShownClips(tuple(choose_examples(scores, examples)), tuple(choose_mistakes(scores, headline, mistakes)))


def choose_examples(scores: ScoredExperiment, count: int) -> list[str]:
    """Choose test clips of all folds, classes in turn, whatever models say."""
    num_classes = len(next(iter(scores.scored.values())).classes)
    own: list[tuple[str, int]] = []
    for fold in scores.folds:
        clips = scores.scored[scores.models[0], fold]
        for clip, target in zip(clips.clip_ids, clips.targets, strict=True):
            positives = target == 1
            if positives.any() and scores.fold_of[clip] == fold:
                own.append((clip, int(positives.argmax())))
    return choose_in_turn(own, num_classes, count)


def choose_mistakes(scores: ScoredExperiment, models: Sequence[str], count: int) -> list[str]:
    """Choose the clips that one of `models` gets wrong with the highest probability for a class that is not there."""
    worst: dict[str, float] = {}
    for model in models:
        for fold in scores.folds:
            clips = scores.scored[model, fold]
            wrong = np.where(clips.decisions & (clips.targets == 0), clips.scores, 0.0).max(axis=1)
            for row in np.flatnonzero(wrong):
                clip = clips.clip_ids[row]
                if scores.fold_of[clip] == fold:
                    worst[clip] = max(worst.get(clip, 0.0), float(wrong[row]))
    return sorted(worst, key=lambda clip: (-worst[clip], clip))[:count]


def choose_in_turn(clips: Iterable[tuple[str, int]], num_classes: int, count: int) -> list[str]:
    """Choose at most `count` of `clips` (id, class)."""
    queues: list[list[str]] = [[] for _ in range(num_classes)]
    for clip, label in clips:
        queues[label].append(clip)
    for queue in queues:
        queue.sort(key=_by_hash, reverse=True)
    chosen: list[str] = []
    while len(chosen) < count and any(queues):
        chosen += [queue.pop() for queue in queues if queue]
    return chosen[:count]


def order_by_hash(clips: Sequence[str]) -> list[str]:
    """Return clips in the order of their hashes: the first n of them are a draw of n."""
    return sorted(clips, key=_by_hash)


def _by_hash(clip: str) -> bytes:
    return hashlib.sha256(clip.encode()).digest()
