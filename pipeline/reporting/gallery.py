"""Clip cards of the report: audio, log-mel, attention or Grad-CAM, the clip's tokens, and the frames that these stand for.

Conventions: frames are (frame, mel), tokens (codebook, frame); see `pipeline/reporting/pictures.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.artifacts.clips import ClipRecord
from pipeline.artifacts.spectrogram import Spectrogram
from pipeline.artifacts.tokens import open_tokens, token_arrays
from pipeline.artifacts.vocabulary import Vocabulary
from pipeline.evaluation.choosing import ScoredExperiment
from pipeline.evaluation.metric_functions import decide
from pipeline.reporting.pictures import (
    map_picture,
    mel_picture,
    picture,
    token_colours,
    wav_address,
    wave_outline,
)
from pipeline.reporting.recordings import Recordings
from pipeline.spectrogram.log_mel import log_mel_part, over_bands
from pipeline.vocabulary.rebuilding import rebuild


@dataclass(frozen=True)
class Decision:
    """Prediction of one model for one clip."""

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
    num_tokens: int  # different tokens in the clip, over all codebooks
    audio: str
    no_audio: str
    outline: str  # SVG path of the waveform in a box of 240 by 40
    log_mel: str
    explanations: tuple[tuple[str, str], ...]  # title, and the map over the log-mel: attention or Grad-CAM of a model
    rebuilt: str  # the log-mel that the tokens stand for; external ones stand for none
    tokens: str


@dataclass(frozen=True)
class GallerySources:
    """Where the things shown of a clip come from."""

    clips: Mapping[str, ClipRecord]  # by clip id
    classes: Sequence[str]
    spectrogram: Spectrogram
    vocabularies: Mapping[str, Vocabulary]  # fold -> vocabulary
    tokens: Mapping[str, Path]  # fold -> its tokens
    explanations: Mapping[str, Mapping[str, np.ndarray]]  # title -> clip_id -> map (frame, mel)
    audio_path: Path  # corpus root


def clip_cards(clip_ids: Sequence[str], scores: ScoredExperiment, sources: GallerySources) -> list[ClipCard]:
    """Return the cards of test clips, in the order given; every fold's tokens are opened at most once."""
    from pipeline.spectrogram.reader import FrameReader

    reader = FrameReader(sources.spectrogram)
    metadata = sources.spectrogram.metadata
    recordings = Recordings(sources.clips, sources.audio_path, metadata["sample_rate"], metadata.get("mix", "mean"))
    cards = {}
    for fold in dict.fromkeys(scores.fold_of[clip] for clip in clip_ids):
        own = [clip for clip in clip_ids if scores.fold_of[clip] == fold]
        vocabulary = sources.vocabularies.get(fold)
        sequences = token_arrays(open_tokens(sources.tokens[fold])) if vocabulary else {}
        colours = token_colours(vocabulary) if vocabulary else np.empty(0)
        for clip, values in zip(own, reader.read(own), strict=True):
            frames = log_mel_part(values, metadata)
            low, high = (float(value) for value in np.percentile(frames, [1, 99.7]))
            tokens, rebuilt, drawn, num_tokens = sequences.get(clip), "", "", 0
            if vocabulary and tokens is not None:
                if vocabulary.decodable:
                    decoded = log_mel_part(rebuild(vocabulary, tokens)[: len(frames)], metadata)
                    rebuilt = mel_picture(decoded, low, high)
                drawn = picture(np.stack([colours[b, row] for b, row in enumerate(vocabulary.in_time(tokens))])[::-1])
                num_tokens = sum(len(np.unique(row)) for row in tokens)
            waveform, no_audio = recordings.read(clip)
            cards[clip] = ClipCard(
                clip_id=clip,
                fold=fold,
                labels=tuple(sources.classes[label] for label in sources.clips[clip]["labels"]),
                seconds=len(frames) / sources.spectrogram.frame_rate,
                decisions=_decisions(scores, clip, fold),
                num_tokens=num_tokens,
                audio=wav_address(waveform, sources.spectrogram.metadata["sample_rate"]) if waveform.size else "",
                no_audio=no_audio,
                outline=wave_outline(waveform) if waveform.size else "",
                log_mel=mel_picture(frames, low, high),
                explanations=tuple(
                    (title, map_picture(frames, over_bands(maps[clip], metadata), low, high))
                    for title, maps in sources.explanations.items()
                ),
                rebuilt=rebuilt,
                tokens=drawn,
            )
    return [cards[clip] for clip in clip_ids]


def _decisions(scores: ScoredExperiment, clip: str, fold: str) -> tuple[Decision, ...]:
    decisions = []
    for model in scores.models:
        clips = scores.scored[model, fold]
        row = clips.clip_ids.index(clip)
        decided = decide(clips.scores[row : row + 1], clips.label_kind, clips.thresholds)[0]
        order = [int(position) for position in np.argsort(-clips.scores[row], kind="stable")]
        names = tuple(clips.classes[position] for position in order if decided[position])
        target = clips.targets[row]
        right = bool(((decided == (target > 0)) | np.isnan(target)).all())  # NaN = unknown
        decisions.append(Decision(model, names, float(clips.scores[row].max()), right))
    return tuple(decisions)
