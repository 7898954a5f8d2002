"""Durations of a sample of a corpus's clips, for choices that are made before a run."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.spectrogram.headers import COLUMNS, clip_seconds, draw_clips, read_header

SAMPLED = 500  # clips whose headers are read


def sample_durations(clips: pa.Table, root: Path, number: int = SAMPLED) -> np.ndarray:
    """Return the durations in seconds of up to `number` clips, ascending, from columns of `CLIP_COLUMNS` or the manifest.

    Files that are missing, or whose header cannot be read, have none.
    """
    return np.sort(np.fromiter(_durations(draw_clips(clips, number), root), dtype=np.float64))


def _durations(clips: pa.Table, root: Path) -> Iterator[float]:
    for clip in clips.select(COLUMNS).to_pylist():
        header = None if clip["duration"] > 0 else read_header(clip, root)
        if (seconds := clip_seconds(clip, header)) is not None:
            yield seconds
