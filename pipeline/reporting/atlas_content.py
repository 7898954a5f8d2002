"""Gather what the atlas of one vocabulary shows, from the artifacts and the corpus's audio."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.artifacts.clips import open_clips
from pipeline.artifacts.layout import Layout
from pipeline.artifacts.spectrogram import Spectrogram, open_spectrogram
from pipeline.artifacts.splits import SPLIT, clips_of, open_split
from pipeline.artifacts.tables import Table
from pipeline.artifacts.tokens import open_tokens, token_arrays
from pipeline.artifacts.vocabulary import Vocabulary, open_vocabulary
from pipeline.evaluation.choosing import choose_in_turn, shuffle
from pipeline.params import validate_params
from pipeline.reporting.atlas_settings import AtlasParams
from pipeline.reporting.atlas_sounds import (
    Occurrences,
    Snippets,
    Speaker,
    SpokenClip,
    cut_snippets,
    decibels,
    listen,
    nearest_occurrences,
)
from pipeline.reporting.atlas_words import CodebookPatterns, word_patterns
from pipeline.reporting.recordings import Recordings
from pipeline.reporting.words import count_by_class, count_words, require_words_of
from pipeline.spectrogram.inversion import Inverter
from pipeline.spectrogram.reader import FrameReader
from pipeline.spectrogram.registry import FrontEndParams, build_front_end

_SPARE = 4  # snippets of a word that are looked for beyond those asked for, to take the place of identical ones


@dataclass(frozen=True)
class AtlasPaths:
    """Where the artifacts of one vocabulary and fold lie."""

    clips: Path
    spectrogram: Path
    split: Path
    vocabulary: Path
    tokens: Path
    audio: Path  # corpus root; may be missing

    @classmethod
    def of(cls, layout: Layout, name: str, fold: str, *, audio: Path) -> Self:
        """Return the paths of a vocabulary `name` and a fold."""
        vocabulary, tokens = layout.vocabulary(name, fold), layout.tokens(name, fold)
        return cls(layout.clips, layout.spectrogram, layout.split(fold), vocabulary, tokens, audio)


@dataclass(frozen=True)
class AtlasContent:
    """Everything that the atlas shows. Counts are (codebook, word), by class (codebook, word, class)."""

    params: AtlasParams
    clips: Table
    spectrogram: Spectrogram
    vocabulary: Vocabulary
    word_rate: float  # words a second in each codebook
    codebooks: Sequence[CodebookPatterns]
    empty_bands: Sequence[int]  # mel bands so narrow that no FFT bin falls into them: they say nothing
    counts: np.ndarray  # over all clips
    training_counts: np.ndarray
    class_counts: np.ndarray  # over all clips
    training_class_counts: np.ndarray
    heard: Occurrences
    sounding: np.ndarray  # (codebook, word) bool: the words that may have sound
    snippets: Snippets
    spoken: Mapping[str, SpokenClip]  # clip_id -> its sounds; empty without audio
    labels: Mapping[str, Sequence[str]]  # clip_id -> classes
    num_words: Mapping[str, int]  # clip_id -> different words, of the clips spoken
    silent: str  # why there is no sound at all; empty = there is


def gather_atlas(params: AtlasParams, paths: AtlasPaths) -> AtlasContent:
    """Open everything and compute what is shown. Raises ArtifactError that names what is missing or does not fit."""
    clips, spectrogram = open_clips(paths.clips), open_spectrogram(paths.spectrogram)
    split, vocabulary, tokens = open_split(paths.split), open_vocabulary(paths.vocabulary), open_tokens(paths.tokens)
    require_words_of(tokens, vocabulary)
    vocabulary.require_front_end(spectrogram)
    if split.facts["fold"] != vocabulary.facts["fold"]:
        raise SPLIT.error(paths.split, "fact fold", expected=vocabulary.facts["fold"], found=split.facts["fold"])
    front_end_params = _front_end_params(spectrogram)
    front_end, inverter = build_front_end(front_end_params), Inverter(front_end_params)
    unit = decibels(spectrogram.facts)

    classes = clips.facts["classes"]
    labels = dict(zip(clips.list("clip_id"), clips.list("labels"), strict=True))
    training = clips_of(split, "train")
    training_labels = {clip: labels[clip] for clip in training}
    counts = count_words(tokens)
    training_counts = np.rint(count_by_class(tokens, dict.fromkeys(training, (0,)), 1)[:, :, 0]).astype(np.int64)
    codebooks = word_patterns(vocabulary, training_counts)
    sentences = token_arrays(tokens)
    reader = FrameReader(spectrogram)
    heard = listen(reader, shuffle(training), sentences, vocabulary, codebooks, unit)

    candidates = [(clip, labels[clip][0]) for clip in reader.ok(clips_of(split, "test")) if labels[clip]]
    whole = choose_in_turn(candidates, len(classes), params.clips)
    played = clips.columns.filter(pc.is_in(clips["clip_id"], pa.array([*heard.clips, *whole])))
    rows = {row["clip_id"]: row for row in played.to_pylist()}
    recordings = Recordings(rows, paths.audio, inverter.sample_rate)
    sounding = most_frequent(counts, params.words)
    snippets = _find_snippets(params, heard, sounding, recordings, inverter)
    speaker = Speaker(vocabulary, front_end, inverter, heard, recordings)
    spoken = {}
    for clip in whole:
        original, _ = recordings.read(clip)
        if len(original) and sentences[clip].size:
            spoken[clip] = speaker.speak(original, reader.read([clip])[0].copy(), sentences[clip], unit)
    return AtlasContent(
        params=params,
        clips=clips,
        spectrogram=spectrogram,
        vocabulary=vocabulary,
        word_rate=float(tokens.facts["frame_rate"]),
        codebooks=codebooks,
        empty_bands=front_end.empty_bands,
        counts=counts,
        training_counts=training_counts,
        class_counts=count_by_class(tokens, labels, len(classes)),
        training_class_counts=count_by_class(tokens, training_labels, len(classes)),
        heard=heard,
        sounding=sounding,
        snippets=snippets,
        spoken=spoken,
        labels={clip: [classes[label] for label in labels[clip]] for clip in {*heard.clips, *spoken}},
        num_words={clip: sum(len(np.unique(row)) for row in sentences[clip]) for clip in spoken},
        silent="" if snippets.waveforms or spoken else recordings.read(heard.clips[0])[1],
    )


def _front_end_params(spectrogram: Spectrogram) -> FrontEndParams:
    """Return what the front end of an opened spectrogram is built from."""
    facts: dict[str, Any] = spectrogram.facts["params"]
    params: FrontEndParams = validate_params(FrontEndParams, facts, "fact params", spectrogram.frames_path)
    return params


def _find_snippets(
    params: AtlasParams, heard: Occurrences, sounding: np.ndarray, recordings: Recordings, inverter: Inverter
) -> Snippets:
    """Cut the snippets of the words (codebook, word) that are to have sound."""
    nearest = {
        (number, word): positions
        for number, words in enumerate(sounding)
        for word, positions in nearest_occurrences(
            heard, number, np.flatnonzero(words), params.snippets + _SPARE
        ).items()
    }
    return cut_snippets(heard, nearest, recordings, inverter, seconds=params.seconds, count=params.snippets)


def most_frequent(counts: np.ndarray, limit: int) -> np.ndarray:
    """Return which of the words that occur are among the `limit` most frequent: bool, as `counts` (codebook, word)."""
    chosen = np.zeros(counts.size, dtype=bool)
    chosen[np.argsort(-counts, axis=None, kind="stable")[:limit]] = True
    return chosen.reshape(counts.shape) & (counts > 0)
