"""Copies of training clips with another speed or pitch, as inputs of networks. Imports no torch."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.artifacts.development import DevelopmentTable, require_copy
from pipeline.artifacts.spectrogram import Spectrogram, open_spectrogram
from pipeline.spectrogram.storing import restore
from pipeline.training.inputs import FrameInputs


class CopiedFrames(FrameInputs):
    """Frames of one copy of each clip, by the clip's id; of the clip itself where its copy could not be computed."""

    def __init__(self, copy: Spectrogram, clips: FrameInputs) -> None:
        super().__init__(copy)
        self._clips = clips
        self.name = copy.path.name
        self.source = copy.index.metadata["version"]

    def usable(self, clip_ids: Sequence[str]) -> list[str]:
        return self._clips.usable(clip_ids)

    def arrays(self, clip_ids: Sequence[str]) -> list[np.ndarray]:
        return [restore(values, self.front_end) for values in self.stored(clip_ids)]

    def stored(self, clip_ids: Sequence[str]) -> list[np.ndarray]:
        copied = self._reader.ok(clip_ids)
        rest = sorted(set(clip_ids) - set(copied))
        found = dict(zip(copied, super().stored(copied), strict=True))
        found |= zip(rest, self._clips.stored(rest), strict=True)
        return [found[clip] for clip in clip_ids]

    def num_frames(self, clip_id: str) -> int:
        return super().num_frames(clip_id) if self._reader.ok([clip_id]) else self._clips.num_frames(clip_id)

    def statistics(self, clip_ids: Sequence[str]) -> list[tuple[float, float]]:
        """Return those of the clips themselves: normalisation follows from no copy."""
        return self._clips.statistics(clip_ids)


def open_copies(paths: Sequence[Path], clips: FrameInputs, development: DevelopmentTable) -> list[CopiedFrames]:
    """Open the copies of a fold's clips. Raises ArtifactError where they are of other clips, or by another front end."""
    copies = [open_spectrogram(path) for path in paths]
    for copy in copies:
        require_copy(development, copy.index)
    return [CopiedFrames(copy, clips) for copy in copies]
