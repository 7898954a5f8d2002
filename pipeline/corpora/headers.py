"""Headers of a sample of a corpus's clips: format, rate, channels and duration, for choices that are made before a run.

A sample is drawn by hash of the clip ids, so that it stays the same as the corpus grows, but for new clips.
"""

import hashlib
import io
from pathlib import Path
from typing import NamedTuple, TypedDict

import numpy as np
import pyarrow as pa
import soundfile

from pipeline.corpora.parquet_audio import SUFFIX, read_row
from pipeline.errors import CorpusError


class ClipPlace(TypedDict):
    """Columns of a listing, or of the manifest, that say where a clip's audio is."""

    source: str
    member: str
    offset: int
    size: int
    start: float
    duration: float


COLUMNS = tuple(ClipPlace.__annotations__)


class Header(NamedTuple):
    """What the header of a sound says."""

    container: str  # WAV, FLAC, OGG, ...
    encoding: str  # PCM_16, VORBIS, ...
    rate: int  # Hz
    channels: int
    seconds: float | None  # of the whole file; None = it does not say


def draw_clips(clips: pa.Table, number: int) -> pa.Table:
    """Return up to `number` clips of a listing or manifest."""
    if len(clips) <= number:
        return clips
    # A slice of the ids by place, then by hash: two million ids are not hashed for five hundred of them.
    step = max(1, len(clips) // (20 * number))
    places = np.arange(0, len(clips), step)
    ids = clips["clip_id"].take(places).to_pylist()
    order = np.argsort([hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids])
    return clips.take(places[order[:number]])


def read_header(clip: ClipPlace, root: Path) -> Header | None:
    """Return the header of a clip's file, or of its part of a tar or Parquet file; None where it cannot be read."""
    path = root / clip["source"]
    try:
        info = soundfile.info(_member(clip, path) if clip["member"] else str(path))
    except (OSError, soundfile.SoundFileError, CorpusError):
        return None
    return Header(info.format, info.subtype, info.samplerate, info.channels, float(info.duration))


def clip_seconds(clip: ClipPlace, header: Header | None) -> float | None:
    """Return the duration of a clip: the listed one, or that from its start to the end of its file."""
    if clip["duration"] > 0:
        return float(clip["duration"])
    return None if header is None or header.seconds is None else max(0.0, header.seconds - clip["start"])


def _member(clip: ClipPlace, path: Path) -> io.BytesIO:
    if path.suffix == SUFFIX:
        return io.BytesIO(read_row(path, clip["offset"]) or b"")
    with path.open("rb") as file:
        file.seek(clip["offset"])
        return io.BytesIO(file.read(clip["size"]))
