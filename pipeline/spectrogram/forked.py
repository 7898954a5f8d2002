"""Reading in a forked process, where tensorstore cannot go on.

tensorstore's threads do not survive a fork: a child whose parent had used them is ended by tensorstore at its first read.
zarr-python starts its own thread anew in a child, and reads there instead, slower. A DataLoader is better served by the
start methods "forkserver" and "spawn", whose workers read with tensorstore.

Conventions: stored values (frame, mel), not yet restored to the front end's units.
"""

import os
from collections.abc import Sequence
from typing import Any

from pipeline.artifacts.spectrogram import FRAMES, Spectrogram

_threads = {"started": False, "lost": False}


def threads_start() -> None:
    """Note that tensorstore is about to start its threads in this process."""
    _threads["started"] = True


def threads_lost() -> bool:
    """Say whether this process was forked from one in which they ran."""
    return _threads["lost"]


def read_stored(spectrogram: Spectrogram, places: Sequence[tuple[str, int, int]]) -> list[Any]:
    """Return the stored frames of each (shard, start, number of frames). Raises ArtifactError that names the shard."""
    path = spectrogram.frames_path
    group, _ = FRAMES.open_group(path)
    arrays = {shard: FRAMES.open_array(path, group, shard) for shard in {place[0] for place in places}}
    stored = []
    for shard, start, num_frames in places:
        try:
            stored.append(arrays[shard][start : start + num_frames])
        except (ValueError, RuntimeError) as error:
            message = str(error).splitlines()[0]
            raise FRAMES.error(path / shard, "chunk", expected="frames as written", found=message) from None
    return stored


def _after_fork() -> None:
    _threads["lost"] = _threads["started"]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
