"""Embeddings of many files, in their order, computed on several threads: of whole files, of windows, or along time."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.execution.threads import map_ahead, usable_threads
from pipeline.inference.embedding import Embedder
from pipeline.inference.prediction import Failure
from pipeline.inference.sounds import MAX_SECONDS, read_file, require_readable
from pipeline.inference.windows import Windowing, WindowReader
from pipeline.spectrogram.sources import BadClip

_WINDOWS_AT_ONCE = 16


class EmbeddedPart(NamedTuple):
    """Embedding of a file, of a window of it, or of one time step."""

    start: float  # seconds
    end: float  # seconds
    vector: np.ndarray  # (dim,) float32


class EmbeddedFile(NamedTuple):
    """Embeddings of one file, in order of time."""

    source: str
    parts: list[EmbeddedPart]


def embed_files(
    embedder: Embedder,
    paths: Sequence[Path],
    *,
    windowing: Windowing | None = None,
    frames: bool = False,
    threads: int | None = None,
) -> Iterator[EmbeddedFile | Failure]:
    """Yield the embeddings of every file, in order; a file that cannot be used is a Failure.

    A file has one embedding, with `windowing` one a window, with `frames` one a time step of the layer. `threads` are by
    default as many as cores; each is fastest where torch computes on one (`use_threads`).
    """
    embed = partial(_embed_file, embedder, windowing=windowing, frames=frames)
    yield from map_ahead(embed, paths, threads or usable_threads())


def _embed_file(embedder: Embedder, path: Path, *, windowing: Windowing | None, frames: bool) -> EmbeddedFile | Failure:
    try:
        if windowing is not None:
            return EmbeddedFile(str(path), list(_embed_windows(embedder, path, windowing)))
        waveform = read_file(path, **embedder.reading, max_seconds=MAX_SECONDS)
        return EmbeddedFile(str(path), _embed_whole(embedder, waveform, str(path), frames=frames))
    except BadClip as error:
        return Failure(str(path), error.reason, error.message)


def _embed_whole(embedder: Embedder, waveform: np.ndarray, where: str, *, frames: bool) -> list[EmbeddedPart]:
    if not frames:
        vector = embedder.clips(waveform[None], where)[0]
        return [EmbeddedPart(0.0, len(waveform) / embedder.sample_rate, vector)]
    steps = embedder.steps(waveform[None], where)
    half = (embedder.hop or 0.0) / 2
    return [
        EmbeddedPart(float(middle) - half, float(middle) + half, vector)
        for middle, vector in zip(steps.seconds, steps.values[0], strict=True)
    ]


def _embed_windows(embedder: Embedder, path: Path, windowing: Windowing) -> Iterator[EmbeddedPart]:
    """Yield the embeddings of a file's windows, which are read forward, so memory does not grow with the file's length."""
    require_readable(path)
    reader = WindowReader(path, windowing, mix=embedder.mix, allow_silence=embedder.allow_silence)
    try:
        while windows := reader.take(windowing.at_once(_WINDOWS_AT_ONCE)):
            sizes = {"sample_rate": embedder.sample_rate, "min_samples": embedder.min_samples}
            waveforms = [window.waveform(reader.rate, **sizes, source=str(path)) for window in windows]
            rows = zip(windows, waveforms, strict=True)
            for _, alike in groupby(rows, key=lambda row: len(row[1])):
                group = list(alike)
                vectors = embedder.clips(np.stack([waveform for _, waveform in group]), str(path))
                for (window, _), vector in zip(group, vectors, strict=True):
                    yield EmbeddedPart(window.start, window.end, vector)
    finally:
        reader.close()
