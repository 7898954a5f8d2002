"""Which clips the report shows, and what it shows of one: audio, log-mel, attention, its words, what they keep of it.

Conventions: frames are (frame, mel), tokens (codebook, frame); see `pipeline/reporting/pictures.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artifacts.spectrogram import Spectrogram
from pipeline.artifacts.tokens import open_tokens, token_arrays
from pipeline.artifacts.vocabulary import Vocabulary
from pipeline.evaluation.ensemble import ScoredClips
from pipeline.evaluation.metrics import decide
from pipeline.reporting.choosing import choose_in_turn
from pipeline.reporting.measuring import Experiment
from pipeline.reporting.pictures import (
    attention_picture,
    mel_picture,
    picture,
    wav_address,
    wave_outline,
    word_colours,
)
from pipeline.reporting.recordings import Recordings
from pipeline.vocabulary.rebuilding import rebuild


@dataclass(frozen=True)
class Decision:
    """What one model says of one clip."""

    model: str
    classes: tuple[str, ...]  # decided for, the likeliest first; for label kind many possibly none
    probability: float  # of the likeliest class
    right: bool


@dataclass(frozen=True)
class ClipCard:
    """Everything that the page shows of one clip; an empty string where a thing is not to be had, with `no_audio` why."""

    clip_id: str
    fold: str
    labels: tuple[str, ...]
    seconds: float
    decisions: tuple[Decision, ...]
    num_words: int  # different words in the clip, over all codebooks
    audio: str
    no_audio: str
    outline: str  # SVG path of the waveform in a box of 240 by 40
    log_mel: str
    attention: str  # of the model that the page names, over the log-mel
    rebuilt: str  # the log-mel that the words stand for
    words: str


@dataclass(frozen=True)
class ScoredExperiment:
    """Every model's test clips by (model, fold), seeds averaged; computed once, for choosing and for showing."""

    models: tuple[str, ...]
    folds: tuple[str, ...]
    scored: Mapping[tuple[str, str], ScoredClips]
    fold_of: Mapping[str, str]  # the first fold that tests a clip


def score_experiment(experiment: Experiment) -> ScoredExperiment:
    """Average the seeds of every model on every fold."""
    folds = tuple(experiment.params.folds)
    scored = {(model, fold): experiment.scored(model, fold) for model in experiment.models for fold in folds}
    fold_of: dict[str, str] = {}
    for fold in folds:
        for clip in scored[experiment.models[0], fold].clip_ids:
            fold_of.setdefault(clip, fold)
    return ScoredExperiment(tuple(experiment.models), folds, scored, fold_of)


def choose_examples(scores: ScoredExperiment, count: int) -> list[str]:
    """Choose test clips of all folds, classes in turn; see `pipeline/reporting/choosing.py`."""
    num_classes = len(next(iter(scores.scored.values())).classes)
    own: list[tuple[str, int]] = []
    for fold in scores.folds:
        clips = scores.scored[scores.models[0], fold]
        for clip, target in zip(clips.clip_ids, clips.targets, strict=True):
            if target.any() and scores.fold_of[clip] == fold:
                own.append((clip, int(target.argmax())))
    return choose_in_turn(own, num_classes, count)


def choose_mistakes(scores: ScoredExperiment, models: Sequence[str], count: int) -> list[str]:
    """Choose the clips that one of `models` gets wrong with the highest probability for a class that is not there."""
    worst: dict[str, float] = {}
    for model in models:
        for fold in scores.folds:
            clips = scores.scored[model, fold]
            decisions = decide(clips.scores, clips.label_kind)
            wrong = np.where(decisions & (clips.targets == 0), clips.scores, 0.0).max(axis=1)
            for row in np.flatnonzero(wrong):
                clip = clips.clip_ids[row]
                if scores.fold_of[clip] == fold:
                    worst[clip] = max(worst.get(clip, 0.0), float(wrong[row]))
    return sorted(worst, key=lambda clip: (-worst[clip], clip))[:count]


RunName = tuple[str, int]  # model, seed


def choose_attentive(experiment: Experiment) -> RunName | None:
    """Return the model whose attention the page shows, the first of the headline before others; None without any."""
    from pipeline.evaluation.attention import attends_to_frames

    seed, fold = experiment.params.seeds[0], experiment.params.folds[0]
    for model in [*experiment.headline, *experiment.params.models]:
        if attends_to_frames(experiment.cards[model, fold, seed]["params"]):
            return model, seed
    return None


@dataclass(frozen=True)
class GallerySources:
    """Where the things shown of a clip come from."""

    clips: Mapping[str, Mapping[str, Any]]  # clip_id -> row of the manifest
    classes: Sequence[str]
    spectrogram: Spectrogram
    vocabularies: Mapping[str, Vocabulary]  # fold -> vocabulary
    tokens_path: Path  # folder of the folds' tokens
    models_path: Path
    attentive: RunName | None  # model and seed whose attention is shown
    audio_path: Path  # corpus root


def clip_cards(clip_ids: Sequence[str], scores: ScoredExperiment, sources: GallerySources) -> list[ClipCard]:
    """Return the cards of test clips, in the order given; every fold's tokens are opened at most once."""
    from pipeline.spectrogram.reader import FrameReader

    reader = FrameReader(sources.spectrogram)
    recordings = Recordings(sources.clips, sources.audio_path, sources.spectrogram.facts["sample_rate"])
    cards = {}
    for fold in dict.fromkeys(scores.fold_of[clip] for clip in clip_ids):
        own = [clip for clip in clip_ids if scores.fold_of[clip] == fold]
        vocabulary = sources.vocabularies.get(fold)
        sentences = token_arrays(open_tokens(sources.tokens_path / f"{fold}.parquet")) if vocabulary else {}
        colours = word_colours(vocabulary) if vocabulary else np.empty(0)
        attention = _attention_maps(sources, fold, own)
        for clip, frames in zip(own, reader.read(own), strict=True):
            low, high = (float(value) for value in np.percentile(frames, [1, 99.7]))
            tokens, rebuilt, words, num_words = sentences.get(clip), "", "", 0
            if vocabulary and tokens is not None:
                rebuilt = mel_picture(rebuild(vocabulary, tokens)[: len(frames)], low, high)
                words = picture(np.stack([colours[b, row] for b, row in enumerate(vocabulary.in_time(tokens))])[::-1])
                num_words = sum(len(np.unique(row)) for row in tokens)
            waveform, no_audio = recordings.read(clip)
            cards[clip] = ClipCard(
                clip_id=clip,
                fold=fold,
                labels=tuple(sources.classes[label] for label in sources.clips[clip]["labels"]),
                seconds=len(frames) / sources.spectrogram.frame_rate,
                decisions=_decisions(scores, clip, fold),
                num_words=num_words,
                audio=wav_address(waveform, sources.spectrogram.facts["sample_rate"]) if waveform.size else "",
                no_audio=no_audio,
                outline=wave_outline(waveform) if waveform.size else "",
                log_mel=mel_picture(frames, low, high),
                attention=attention_picture(frames, attention[clip], low, high) if clip in attention else "",
                rebuilt=rebuilt,
                words=words,
            )
    return [cards[clip] for clip in clip_ids]


def _decisions(scores: ScoredExperiment, clip: str, fold: str) -> tuple[Decision, ...]:
    decisions = []
    for model in scores.models:
        clips = scores.scored[model, fold]
        row = clips.clip_ids.index(clip)
        decided = decide(clips.scores[row : row + 1], clips.label_kind)[0]
        order = [int(position) for position in np.argsort(-clips.scores[row], kind="stable")]
        names = tuple(clips.classes[position] for position in order if decided[position])
        right = bool((decided == (clips.targets[row] > 0)).all())
        decisions.append(Decision(model, names, float(clips.scores[row].max()), right))
    return tuple(decisions)


def _attention_maps(sources: GallerySources, fold: str, clip_ids: Sequence[str]) -> dict[str, np.ndarray]:
    """Return clip_id -> what the attentive model of a fold attends to (frame, mel); nothing where there is none."""
    if sources.attentive is None or not clip_ids:
        return {}
    from pipeline.artifacts.model import open_model
    from pipeline.evaluation.attention import AttentionReader
    from pipeline.training.inputs import FrameInputs

    model, seed = sources.attentive
    trained = open_model(sources.models_path / model / fold / str(seed))
    reader = AttentionReader(trained, FrameInputs(sources.spectrogram))
    return {clip: reader.read(clip).over_picture() for clip in clip_ids}
