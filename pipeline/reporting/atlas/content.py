"""Gather what the atlas of one vocabulary shows, from the artifacts and the corpus's audio."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.artifacts.attribution import AttributionTable, open_attribution
from pipeline.artifacts.clips import ClipTable, open_clips
from pipeline.artifacts.layout import Layout
from pipeline.artifacts.spectrogram import Spectrogram, open_spectrogram
from pipeline.artifacts.splits import SPLIT, clips_of, open_split
from pipeline.artifacts.tokens import open_tokens, token_arrays
from pipeline.artifacts.vocabulary import Vocabulary, open_vocabulary
from pipeline.evaluation.choosing import choose_in_turn, order_by_hash
from pipeline.reporting.atlas.settings import AtlasParams
from pipeline.reporting.atlas.sounds import (
    Occurrences,
    ResynthesisedClip,
    Resynthesiser,
    Snippets,
    collect_occurrences,
    cut_snippets,
    decibels,
    nearest_occurrences,
)
from pipeline.reporting.atlas.tokens import CodebookPatterns, token_patterns
from pipeline.reporting.recordings import Recordings
from pipeline.reporting.token_use import count_by_class, count_tokens, require_tokens_of
from pipeline.spectrogram.inversion import Inverter
from pipeline.spectrogram.log_mel import log_mel_part
from pipeline.spectrogram.reader import FrameReader
from pipeline.spectrogram.registry import recorded_front_end

_SPARE = 4  # snippets of a token that are looked for beyond those asked for, to take the place of identical ones


@dataclass(frozen=True)
class AtlasPaths:
    """Where the artifacts of one vocabulary and fold lie."""

    clips: Path
    spectrogram: Path
    split: Path
    vocabulary: Path
    tokens: Path
    audio: Path  # corpus root; may be missing
    attribution: Path | None = None  # table of attributions to the tokens; None = none is shown

    @classmethod
    def of(cls, layout: Layout, name: str, fold: str, *, audio: Path, attribution: Path | None = None) -> Self:
        """Return the paths of a vocabulary `name` and a fold."""
        vocabulary, tokens = layout.vocabulary(name, fold), layout.tokens(name, fold)
        return cls(layout.clips, layout.spectrogram, layout.split(fold), vocabulary, tokens, audio, attribution)


@dataclass(frozen=True)
class AtlasContent:
    """Everything that the atlas shows. Counts are (codebook, token), by class (codebook, token, class)."""

    params: AtlasParams
    clips: ClipTable
    spectrogram: Spectrogram
    vocabulary: Vocabulary
    token_rate: float  # tokens a second in each codebook
    codebooks: Sequence[CodebookPatterns]
    empty_bands: Sequence[int]  # mel bands so narrow that no FFT bin falls into them: they say nothing
    counts: np.ndarray  # over all clips
    training_counts: np.ndarray
    class_counts: np.ndarray  # over all clips
    training_class_counts: np.ndarray
    occurrences: Occurrences
    sounding: np.ndarray  # (codebook, token) bool: the tokens that may have sound
    snippets: Snippets
    resynthesised: Mapping[str, ResynthesisedClip]  # clip_id -> its sounds; empty without audio
    labels: Mapping[str, Sequence[str]]  # clip_id -> classes
    num_tokens: Mapping[str, int]  # clip_id -> different tokens, of the clips resynthesised
    attribution: AttributionTable | None
    silent: str  # why there is no sound at all; empty = there is


def gather_atlas(params: AtlasParams, paths: AtlasPaths) -> AtlasContent:
    """Open everything and compute what is shown. Raises ArtifactError that names what is missing or does not fit."""
    clips, spectrogram = open_clips(paths.clips), open_spectrogram(paths.spectrogram)
    split, vocabulary, tokens = open_split(paths.split), open_vocabulary(paths.vocabulary), open_tokens(paths.tokens)
    require_tokens_of(tokens, vocabulary)
    vocabulary.require_front_end(spectrogram)
    if split.metadata["fold"] != vocabulary.metadata["fold"]:
        raise SPLIT.error(
            paths.split, "metadata fold", expected=vocabulary.metadata["fold"], found=split.metadata["fold"]
        )
    front_end = recorded_front_end(spectrogram.metadata)
    inverter = Inverter(front_end)
    unit = decibels(spectrogram.metadata)

    classes = clips.metadata["classes"]
    labels = dict(zip(clips.list("clip_id"), clips.list("labels"), strict=True))
    training = clips_of(split, "train")
    training_labels = {clip: labels[clip] for clip in training}
    counts = count_tokens(tokens)
    training_counts = np.rint(count_by_class(tokens, dict.fromkeys(training, (0,)), 1)[:, :, 0]).astype(np.int64)
    codebooks = token_patterns(vocabulary, training_counts)
    attribution = None
    if paths.attribution is not None:
        attribution = open_attribution(paths.attribution, vocabulary=vocabulary.digest(), classes=classes)
    sequences = token_arrays(tokens)
    reader = FrameReader(spectrogram)
    occurrences = collect_occurrences(reader, order_by_hash(training), sequences, vocabulary, codebooks, unit)

    candidates = [(clip, labels[clip][0]) for clip in reader.ok(clips_of(split, "test")) if labels[clip]]
    whole = choose_in_turn(candidates, len(classes), params.clips)
    played = clips.columns.filter(pc.is_in(clips["clip_id"], pa.array([*occurrences.clips, *whole])))
    rows = {row["clip_id"]: row for row in played.to_pylist()}
    recordings = Recordings(rows, paths.audio, inverter.sample_rate, spectrogram.metadata.get("mix", "mean"))
    sounding = most_frequent(counts, params.tokens)
    snippets = _find_snippets(params, occurrences, sounding, recordings, inverter)
    speaker = Resynthesiser(vocabulary, front_end, inverter, occurrences, recordings)
    resynthesised = {}
    for clip in whole if vocabulary.decodable else ():
        original, _ = recordings.read(clip)
        if front_end.invertible and len(original) and sequences[clip].size:
            frames = log_mel_part(reader.read([clip])[0], spectrogram.metadata).copy()
            resynthesised[clip] = speaker.synthesise(original, frames, sequences[clip], unit)
    return AtlasContent(
        params=params,
        clips=clips,
        spectrogram=spectrogram,
        vocabulary=vocabulary,
        token_rate=float(tokens.metadata["frame_rate"]),
        codebooks=codebooks,
        empty_bands=front_end.empty_bands,
        counts=counts,
        training_counts=training_counts,
        class_counts=count_by_class(tokens, labels, len(classes)),
        training_class_counts=count_by_class(tokens, training_labels, len(classes)),
        occurrences=occurrences,
        sounding=sounding,
        snippets=snippets,
        resynthesised=resynthesised,
        labels={clip: [classes[label] for label in labels[clip]] for clip in {*occurrences.clips, *resynthesised}},
        attribution=attribution,
        num_tokens={clip: sum(len(np.unique(row)) for row in sequences[clip]) for clip in resynthesised},
        silent="" if snippets.waveforms or resynthesised else recordings.read(occurrences.clips[0])[1],
    )


def _find_snippets(
    params: AtlasParams, occurrences: Occurrences, sounding: np.ndarray, recordings: Recordings, inverter: Inverter
) -> Snippets:
    """Cut the snippets of the tokens (codebook, token) that are to have sound."""
    nearest = {
        (number, token): positions
        for number, row in enumerate(sounding)
        for token, positions in nearest_occurrences(
            occurrences, number, np.flatnonzero(row), params.snippets + _SPARE
        ).items()
    }
    return cut_snippets(occurrences, nearest, recordings, inverter, seconds=params.seconds, count=params.snippets)


def most_frequent(counts: np.ndarray, limit: int) -> np.ndarray:
    """Return which of the tokens that occur are among the `limit` most frequent: bool, as `counts` (codebook, token)."""
    chosen = np.zeros(counts.size, dtype=bool)
    chosen[np.argsort(-counts, axis=None, kind="stable")[:limit]] = True
    return chosen.reshape(counts.shape) & (counts > 0)
