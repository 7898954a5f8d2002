"""Mean and standard deviation of a set of clips: from the sums in the index, or by channel, from the frames."""

import math
from collections.abc import Sequence

import numpy as np

from pipeline.artifacts.spectrogram import INDEX, Spectrogram
from pipeline.errors import CorpusError
from pipeline.spectrogram.reader import FrameReader

_CLIPS_AT_ONCE = 32


def corpus_statistics(spectrogram: Spectrogram, clip_ids: Sequence[str]) -> tuple[float, float]:
    """Return mean and standard deviation over all frames and mel bands of these clips, in the front end's units.

    Clips without frames are skipped. Pass training clips only, so that test clips do not influence training. Raises
    CorpusError when no clip has frames, ArtifactError for a clip that the index lacks.
    """
    index = spectrogram.index
    rows = {clip_id: row for row, clip_id in enumerate(index.list("clip_id"))}
    unknown = next((clip_id for clip_id in clip_ids if clip_id not in rows), None)
    if unknown is not None:
        raise INDEX.error(spectrogram.path, f"clip {unknown}", expected="a row of the index", found="none")
    chosen = np.array([rows[clip_id] for clip_id in clip_ids], dtype=np.int64)
    counts, sums, squares = (index[name].to_numpy()[chosen] for name in ("num_frames", "sum", "sum_of_squares"))
    num_values = int(counts.sum()) * spectrogram.n_mels
    if not num_values:
        found = f"none in {len(clip_ids)} clips; the index has the reasons"
        raise CorpusError(f"{spectrogram.path}: expected frames to normalise by, found {found}")
    mean = math.fsum(sums) / num_values
    variance = math.fsum(squares) / num_values - mean**2
    return mean, math.sqrt(max(variance, 0.0))


def channel_statistics(reader: FrameReader, clip_ids: Sequence[str], num_channels: int) -> list[tuple[float, float]]:
    """Return mean and standard deviation of each channel over all frames of these clips, which are read for it.

    Clips without frames are skipped. Raises CorpusError when no clip has frames.
    """
    usable = reader.ok(clip_ids)
    sums, count = np.zeros((2, num_channels)), 0
    for start in range(0, len(usable), _CLIPS_AT_ONCE):
        for frames in reader.read(usable[start : start + _CLIPS_AT_ONCE]):
            values = frames.reshape(len(frames), num_channels, -1).astype(np.float64)
            sums += values.sum((0, 2)), np.square(values).sum((0, 2))
            count += values[:, 0].size
    if not count:
        found = f"none in {len(clip_ids)} clips; the index of the spectrogram has the reasons"
        raise CorpusError(f"training clips: expected frames to normalise by, found {found}")
    means = sums[0] / count
    deviations = np.sqrt(np.maximum(sums[1] / count - means**2, 0.0))
    return list(zip(means.tolist(), deviations.tolist(), strict=True))
