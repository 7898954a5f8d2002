"""Headers of a sample of a corpus's clips: format, rate, channels and duration, for choices that are made before a run.

A sample is drawn by hash of the clip ids, so that it stays the same as the corpus grows, but for new clips.
"""

import hashlib
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypedDict

import numpy as np
import pyarrow as pa
import soundfile

from pipeline.spectrogram.ffmpeg import FFmpegReader
from pipeline.spectrogram.readers import open_reader
from pipeline.spectrogram.sources import BadClip, PackedAudio, Source, open_source


class ClipPlace(TypedDict):
    """Columns of a listing, or of the manifest, that say where a clip's audio is."""

    source: str
    member: str
    offset: int
    size: int
    content: str
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
    """Return the header of a clip's file, or of its part of a tar or Parquet file; None where it cannot be read.

    libsndfile reads it, or else FFmpeg, as it decodes the file.
    """
    path = root / clip["source"]
    try:
        with open_source(path, path, packed(clip), "") as source:
            return _by_libsndfile(source) or _by_ffmpeg(source, path, suffix_of(clip))
    except BadClip:
        return None


def clip_seconds(clip: ClipPlace, header: Header | None) -> float | None:
    """Return the duration of a clip: the listed one, or that from its start to the end of its file."""
    if clip["duration"] > 0:
        return float(clip["duration"])
    return None if header is None or header.seconds is None else max(0.0, header.seconds - clip["start"])


def packed(clip: ClipPlace) -> PackedAudio | None:
    """Return the place of a clip in a file that holds many; None where it has a file of its own."""
    return PackedAudio(clip["member"], clip["offset"], clip["size"], clip["content"]) if clip["member"] else None


def suffix_of(clip: ClipPlace) -> str:
    """Return how the name of a clip's file or member ends, such as WAV."""
    return PurePosixPath(clip["member"] or clip["source"]).suffix.lstrip(".").upper() or "file"


def _by_libsndfile(source: Source) -> Header | None:
    try:
        info = soundfile.info(source)
    except soundfile.SoundFileError:
        return None
    return Header(info.format, info.subtype, info.samplerate, info.channels, float(info.duration))


def _by_ffmpeg(source: Source, path: Path, suffix: str) -> Header:
    with open_reader(source, path, whole=False) as reader:
        seconds = reader.stated_seconds if isinstance(reader, FFmpegReader) else None
        return Header(suffix, "by FFmpeg", reader.rate, reader.num_channels, seconds)
