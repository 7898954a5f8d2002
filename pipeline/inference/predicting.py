"""Predictions for many files: decoding, features and forward passes on several threads, in batches bounded in frames.

A file gives pieces, the whole of it or its windows; a job scores some pieces on one thread, and jobs run side by side, a few
ahead of the caller. So memory depends neither on the number of files nor, with windows, on their length. Results come in the
order of the files.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.execution.threads import map_ahead, usable_threads
from pipeline.inference.classifier import Classifier
from pipeline.inference.prediction import Failure, Prediction
from pipeline.inference.sounds import MAX_SECONDS, read_file, require_readable
from pipeline.inference.windows import Window, Windowing, WindowReader, pool_logits, pool_scores
from pipeline.spectrogram.sources import BadClip
from pipeline.vocabulary.batching import padded_batches

# A batch of 16 clips is as fast as one of 64 on a core, whose cache it does not outgrow.
PIECES_PER_JOB = 16
# Of a batch, padding included, unless a single sound has more: 16 clips of 25 s at 100 frames/s.
FRAMES_PER_BATCH = 40_000


@dataclass(frozen=True)
class FilePrediction:
    """Prediction of one file."""

    whole: Prediction
    windows: list[Prediction] = field(default_factory=list)  # along time; empty for a file that is predicted as a whole


class _Part(NamedTuple):
    """Pieces of one file that a job scores: the whole file, or some of its windows."""

    path: Path
    reader: WindowReader | None  # None: the whole file
    num_pieces: int
    last: bool  # of its file
    failure: Failure | None = None  # found before the job


class _Frames(NamedTuple):
    """Frames of a piece that is not scored yet."""

    number: int  # of its part
    start: float  # seconds
    end: float  # seconds
    frames: np.ndarray  # (frame, mel) float32


class _Piece(NamedTuple):
    """A part of a sound with its logits."""

    start: float  # seconds
    end: float  # seconds
    logits: np.ndarray  # (class,) float32


class _ScoredPart(NamedTuple):
    part: _Part
    pieces: list[_Piece]
    failure: Failure | None


def predict_files(
    classifier: Classifier,
    paths: Sequence[Path],
    windowing: Windowing | None,
    *,
    threads: int | None = None,
    advance: Callable[[float], None] | None = None,
) -> Iterator[FilePrediction | Failure]:
    """Yield the prediction of every file, in order; a file that cannot be used is a Failure.

    `threads` are by default as many as cores; each is fastest where torch computes on one (`use_threads`). `advance` is told
    how many seconds of the current file are done.
    """
    classifier.prepare()  # once, and not by every thread
    threads = threads or usable_threads()
    pieces: list[_Piece] = []
    failure: Failure | None = None
    jobs = _jobs(_parts(classifier, paths, windowing), len(paths), threads)
    for scored in chain.from_iterable(map_ahead(partial(_score, classifier), jobs, threads)):
        pieces += scored.pieces
        failure = failure or scored.failure
        if advance and pieces:
            advance(max(piece.end for piece in scored.pieces or pieces[-1:]))
        if scored.part.last:
            yield failure or _join(classifier, str(scored.part.path), pieces, windowing)
            pieces, failure = [], None


def predict_windows(
    classifier: Classifier, source: str, windows: Iterable[Window], rate: int, windowing: Windowing
) -> FilePrediction:
    """Return the prediction of the windows of one sound of `rate` Hz. Raises BadClip where a window cannot be used."""
    frames = (
        _Frames(0, window.start, window.end, _window_frames(classifier, source, window, rate)) for window in windows
    )
    return _join(classifier, source, [piece for _, piece in _scored(classifier, frames)], windowing)


def describe(
    classifier: Classifier, source: str, start: float, end: float, logits: np.ndarray, scores: np.ndarray
) -> Prediction:
    """Return the prediction of logits and probabilities, (class,) each."""
    return Prediction(
        source=source,
        start=start,
        end=end,
        classes=classifier.classes,
        label_kind=classifier.label_kind,
        thresholds=classifier.thresholds,
        logits=logits,
        scores=scores,
    )


def _parts(classifier: Classifier, paths: Iterable[Path], windowing: Windowing | None) -> Iterator[_Part]:
    reading = classifier.reading
    for path in paths:
        if windowing is None:
            yield _Part(path, None, 1, last=True)
            continue
        try:
            require_readable(path)
            reader = WindowReader(path, windowing, mix=reading["mix"], allow_silence=reading["allow_silence"])
        except BadClip as error:
            yield _Part(path, None, 0, last=True, failure=_failure(path, error))
            continue
        yield from _window_parts(path, reader, windowing)


def _window_parts(path: Path, reader: WindowReader, windowing: Windowing) -> Iterator[_Part]:
    size = windowing.at_once(PIECES_PER_JOB)
    for start in range(0, reader.num_windows, size):
        count = min(size, reader.num_windows - start)
        yield _Part(path, reader, count, last=start + count == reader.num_windows)


def _jobs(parts: Iterable[_Part], num_files: int, threads: int) -> Iterator[list[_Part]]:
    """Yield the parts of every job: about as many pieces in each, fewer where there are few files for the threads."""
    most = max(1, min(PIECES_PER_JOB, -(-num_files // (2 * threads))))
    job: list[_Part] = []
    size = 0
    for part in parts:
        if job and size + part.num_pieces > most:
            yield job
            job, size = [], 0
        job.append(part)
        size += part.num_pieces
    if job:
        yield job


def _score(classifier: Classifier, parts: Sequence[_Part]) -> list[_ScoredPart]:
    failures = [part.failure for part in parts]
    pieces: list[list[_Piece]] = [[] for _ in parts]
    for number, piece in _scored(classifier, _frames_of_parts(classifier, parts, failures)):
        pieces[number].append(piece)
    return [_ScoredPart(*scored) for scored in zip(parts, pieces, failures, strict=True)]


def _frames_of_parts(
    classifier: Classifier, parts: Sequence[_Part], failures: list[Failure | None]
) -> Iterator[_Frames]:
    """Yield the frames of all pieces; a part that cannot be used ends there, with its failure in the list."""
    for number, part in enumerate(parts):
        if part.failure is None:
            try:
                yield from _frames_of(classifier, number, part)
            except BadClip as error:
                failures[number] = _failure(part.path, error)


def _frames_of(classifier: Classifier, number: int, part: _Part) -> Iterator[_Frames]:
    if part.reader is None:
        yield _Frames(number, *_whole(classifier, part.path))
        return
    for window in part.reader.take(part.num_pieces):
        frames = _window_frames(classifier, str(part.path), window, part.reader.rate)
        yield _Frames(number, window.start, window.end, frames)


def _whole(classifier: Classifier, path: Path) -> tuple[float, float, np.ndarray]:
    """Return start and end of a file in seconds, and its frames."""
    rate = classifier.sample_rate
    waveform = read_file(path, **classifier.reading, max_seconds=MAX_SECONDS)
    return 0.0, len(waveform) / rate, classifier.frames(waveform, str(path))


def _window_frames(classifier: Classifier, source: str, window: Window, rate: int) -> np.ndarray:
    """Return a window's frames."""
    waveform = window.waveform(
        rate, sample_rate=classifier.sample_rate, min_samples=classifier.front_end.min_samples, source=source
    )
    return classifier.frames(waveform, window.name_in(source))


def _scored(classifier: Classifier, frames: Iterable[_Frames]) -> Iterator[tuple[int, _Piece]]:
    """Yield every piece with the number of its part, in order, as soon as pieces fill a batch."""
    for batch in padded_batches(frames, lambda piece: len(piece.frames), frames_per_batch=FRAMES_PER_BATCH):
        logits = classifier.logits([piece.frames for piece in batch])
        for piece, row in zip(batch, logits, strict=True):
            yield piece.number, _Piece(piece.start, piece.end, row)


def _join(classifier: Classifier, source: str, pieces: list[_Piece], windowing: Windowing | None) -> FilePrediction:
    """Return the prediction of a file from its pieces, in any order."""
    pieces = sorted(pieces, key=lambda piece: piece.start)
    logits = np.stack([piece.logits for piece in pieces])
    scores = classifier.scores(logits)
    windows = [
        describe(classifier, source, piece.start, piece.end, piece.logits, row)
        for piece, row in zip(pieces, scores, strict=True)
    ]
    if windowing is None:
        return FilePrediction(windows[0])
    pooled = pool_logits(logits, classifier.link, windowing.pool)
    scores = pool_scores(scores, windowing.pool)
    return FilePrediction(describe(classifier, source, 0.0, windows[-1].end, pooled, scores), windows)


def _failure(path: Path, error: BadClip) -> Failure:
    return Failure(str(path), error.reason, error.message)
