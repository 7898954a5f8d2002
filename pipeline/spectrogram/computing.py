"""Computation of a clip's log-mel frames: decoding, front end, quantisation and writing.

The memo's code version is derived from this file (see `pipeline/execution/code.py`); scheduling is in `building.py`.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import zarr

from pipeline.artifacts.spectrogram import FRAMES_ARRAY, SpectrogramMetadata
from pipeline.execution.code import code_version
from pipeline.spectrogram.bandwidth import measure_bandwidth
from pipeline.spectrogram.decoding import decode_clip
from pipeline.spectrogram.front_end import FrontEnd
from pipeline.spectrogram.sources import BadClip, PackedAudio
from pipeline.spectrogram.storing import restore, store

# Frames of one chunk, the unit of reading. Shuffled batches of 5 s clips read equally fast, within the noise, with 64 to 512
# of them; at 1024 a cold read decompresses too many frames outside the clip.
_CHUNK_FRAMES = 256

# Reasons that may be temporary: the next run tries again.
PASSING_REASONS = ("missing", "moved", "read_error")


class Clip(NamedTuple):
    """One clip as the manifest lists it; a tuple, since planning a run makes millions of them."""

    clip_id: str
    source: str  # file below the corpus root
    start: float  # seconds
    duration: float  # seconds; 0 = to the end
    content: str  # digest of the encoded audio; empty = missing
    member: str = ""  # of `source` when that is a tar or Parquet file
    offset: int = 0  # of the member, in bytes; its row in a Parquet file
    size: int = 0  # of the member, in bytes

    @property
    def key(self) -> str:
        """Return a digest of the audio that is read, independent of file names; empty when the file is missing."""
        if not self.content:
            return ""
        return hashlib.sha256(f"{self.content}\x1f{self.start!r}\x1f{self.duration!r}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class ClipFrames:
    """A clip's stored frames, and their statistics for the index."""

    stored: np.ndarray  # (frame, mel)
    sum: float  # of all values, in units
    sum_of_squares: float
    num_clipped: int  # values outside the range of uint8
    sample_rate: int  # of the file, Hz
    num_channels: int  # of the file
    bandwidth: float  # see `bandwidth.py`


def compute_clip(
    clip: Clip, front_end: FrontEnd, metadata: SpectrogramMetadata, *, root: Path, max_duration: float
) -> ClipFrames:
    """Decode a clip and compute its frames. Raises BadClip where it cannot be used."""
    path = root / clip.source
    if not clip.content:
        found = "none that could be read when the corpus was listed"
        raise BadClip("missing", f"{path}: expected a file, found {found}")
    decoded = decode_clip(
        path,
        start=clip.start,
        duration=clip.duration,
        sample_rate=metadata["sample_rate"],
        max_duration=max_duration,
        min_samples=front_end.min_samples,
        member=PackedAudio(clip.member, clip.offset, clip.size, clip.content) if clip.member else None,
        content=clip.content,
        mix=metadata.get("mix", "mean"),
        allow_silence=metadata.get("silence") == "keep",
    )
    stored, num_clipped = stored_frames(decoded.waveform, front_end, metadata, where=str(path))
    # Statistics are of the restored values, as a reader sees them.
    values = restore(stored, metadata).astype(np.float64)
    return ClipFrames(
        stored,
        float(values.sum()),
        float(np.square(values).sum()),
        num_clipped,
        decoded.rate,
        decoded.num_channels,
        measure_bandwidth(decoded.waveform, metadata["sample_rate"]),
    )


def stored_frames(
    waveform: np.ndarray, front_end: FrontEnd, metadata: SpectrogramMetadata, *, where: str
) -> tuple[np.ndarray, int]:
    """Return the frames (frame, mel) of a waveform as they are stored, and the number of values that were clipped.

    Raises BadClip where frames are not finite; `where` names the sound.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # checked below
        log_mel = front_end.log_mel(waveform)
    if not np.isfinite(log_mel).all():
        found = f"samples as large as {np.abs(waveform).max():.3g}"
        raise BadClip("not_finite", f"{where}: expected samples about [-1, 1], found {found}")
    return store(log_mel, metadata)


def write_frames(folder: Path, name: str, pieces: Sequence[np.ndarray]) -> None:
    """Write the frames of a shard's clips, end to end, as the array `name` of a new group at `folder`."""
    frames = np.concatenate(pieces)
    FRAMES_ARRAY.write(zarr.create_group(folder), name, frames, (_CHUNK_FRAMES, frames.shape[1]))


def computing_version(front_end: FrontEnd, *around: type[FrontEnd]) -> str:
    """Return the code version of this computation with one front end, and what is around it."""
    return code_version(compute_clip, write_frames, type(front_end), *around)
