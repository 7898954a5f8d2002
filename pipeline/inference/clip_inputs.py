"""Frames or tokens of clips in memory, as models read them; see `Inputs` in `pipeline/training/inputs.py`."""

from collections.abc import Sequence

import numpy as np

from pipeline.artifacts.model import TrainedModel
from pipeline.artifacts.vocabulary import Vocabulary
from pipeline.spectrogram.storing import restore


class ClipInputs:
    """Clips of one model, named "0", "1", ...: frames (frame, mel) as stored, or tokens (codebook, token) uint16."""

    def __init__(self, model: TrainedModel, vocabulary: Vocabulary | None, clips: Sequence[np.ndarray]) -> None:
        self.metadata, self.front_end = model.metadata["input"], model.metadata["front_end"]
        self.source = model.metadata["source"]
        self.frame_rate = vocabulary.frame_rate if vocabulary else float(self.front_end["frame_rate"])
        self.time_axis = 1 if vocabulary else 0
        self._clips = {str(number): clip for number, clip in enumerate(clips)}
        self.clip_ids = list(self._clips)

    def usable(self, clip_ids: Sequence[str]) -> list[str]:
        return [clip for clip in clip_ids if clip in self._clips]

    def arrays(self, clip_ids: Sequence[str]) -> list[np.ndarray]:
        stored = self.stored(clip_ids)
        return stored if self.time_axis else [restore(frames, self.front_end) for frames in stored]

    def stored(self, clip_ids: Sequence[str]) -> list[np.ndarray]:
        return [self._clips[clip] for clip in clip_ids]

    def num_frames(self, clip_id: str) -> int:
        return int(self._clips[clip_id].shape[self.time_axis])

    def statistics(self, clip_ids: Sequence[str]) -> list[tuple[float, float]]:
        """Return (0, 1): statistics of training clips are stored with a model."""
        return [(0.0, 1.0)]
