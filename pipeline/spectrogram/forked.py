"""Reading of stored frames with zarr-python, for forked processes (see `pipeline/artifacts/forks.py`).

With the start methods "forkserver" and "spawn", workers of a DataLoader read with tensorstore, which is faster.

Conventions: stored values (frame, mel), not yet restored to the front end's units.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.artifacts.spectrogram import FRAMES, Spectrogram


def read_stored(spectrogram: Spectrogram, places: Sequence[tuple[str, int, int]]) -> list[np.ndarray]:
    """Return the stored frames of each (shard, start, number of frames). Raises ArtifactError that names the shard."""
    path = spectrogram.frames_path
    group, _ = FRAMES.open_group(path)
    arrays = {shard: FRAMES.open_array(path, group, shard) for shard in {place[0] for place in places}}
    stored = []
    for shard, start, num_frames in places:
        try:
            stored.append(np.asarray(arrays[shard][start : start + num_frames]))
        except (ValueError, RuntimeError) as error:
            message = str(error).splitlines()[0]
            raise FRAMES.error(path / shard, "chunk", expected="frames as written", found=message) from None
    return stored
