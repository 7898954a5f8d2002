"""Mean and standard deviation of a set of clips, from the sums in the index, without reading frames."""

import math
from collections.abc import Sequence

import numpy as np

from pipeline.artifacts.spectrogram import INDEX, Spectrogram
from pipeline.errors import CorpusError


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
