"""Durations of a sample of a corpus's clips, from the headers of their files, for choices that are made before a run.

A sample is drawn by hash of the clip ids, so that it stays the same as the corpus grows, but for new clips.
"""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import soundfile

SAMPLED = 500  # clips whose headers are read


def sample_durations(clips: pa.Table, root: Path, number: int = SAMPLED) -> np.ndarray:
    """Return the durations in seconds of up to `number` clips, ascending, from columns of `CLIP_COLUMNS` or the manifest.

    Files that are missing, or whose header cannot be read, have none.
    """
    return np.sort(np.fromiter(_durations(_draw(clips, number), root), dtype=np.float64))


def _draw(clips: pa.Table, number: int) -> pa.Table:
    if len(clips) <= number:
        return clips
    # A slice of the ids by place, then by hash: two million ids are not hashed for five hundred of them.
    step = max(1, len(clips) // (20 * number))
    places = np.arange(0, len(clips), step)
    ids = clips["clip_id"].take(places).to_pylist()
    order = np.argsort([hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids])
    return clips.take(places[order[:number]])


def _durations(clips: pa.Table, root: Path) -> Iterator[float]:
    columns = ("source", "member", "offset", "size", "start", "duration")
    for row in clips.select(columns).to_pylist():
        if row["duration"] > 0:
            yield row["duration"]
        elif (seconds := _file_seconds(root / row["source"], row["member"], row["offset"], row["size"])) is not None:
            yield max(0.0, seconds - row["start"])


def _file_seconds(path: Path, member: str, offset: int, size: int) -> float | None:
    """Return what the header of a file, or of a member of a tar, says of its duration; None where it cannot be read."""
    try:
        if not member:
            return float(soundfile.info(str(path)).duration)
        with path.open("rb") as file:
            file.seek(offset)
            return float(soundfile.info(io.BytesIO(file.read(size))).duration)
    except (OSError, soundfile.SoundFileError):
        return None
