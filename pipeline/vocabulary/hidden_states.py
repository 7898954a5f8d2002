"""Hidden states of a trained network in the place of frames: what vocabularies with `features.hidden_states` quantise.

The network that makes them belongs to a higher layer, `pipeline/evaluation/hidden_states.py`; here is the interface to it.

Conventions: frames (frame, mel) float32 in the front end's units; states (state, width) float32, one for every
`frames_per_state` frames of a clip, the last of which may be fewer. A clip's states follow from its own frames to the bit.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from pipeline.artifacts.vocabulary import HiddenStateMetadata
from pipeline.vocabulary.sampling import ClipFrames

_KEPT_BYTES = 1 << 30  # of states that a reader keeps, so that a network computes a small corpus once


class StateSource(Protocol):
    """A network that turns the frames of a clip into hidden states."""

    @property
    def metadata(self) -> HiddenStateMetadata:
        """The network and the layer, as vocabularies record them."""

    def states(self, frames: np.ndarray) -> np.ndarray:
        """Return the states of a clip."""


class StateReader:
    """Hidden states of clips by id, behind the interface through which vocabularies read frames."""

    def __init__(self, reader: ClipFrames, folder: Path, source: StateSource) -> None:
        """Read frames through a reader of clips, and compute states by the network in a folder."""
        self.frames, self.folder, self.metadata = reader, folder, source.metadata
        self._source = source
        self._kept: dict[str, np.ndarray] = {}
        self._bytes = 0

    def ok(self, clip_ids: Sequence[str]) -> list[str]:
        return self.frames.ok(clip_ids)

    def num_frames(self, clip_id: str) -> int:
        """Return the number of a clip's states."""
        return -(-self.frames.num_frames(clip_id) // self.metadata["frames_per_state"])

    def read(self, clip_ids: Sequence[str]) -> list[np.ndarray]:
        new = [clip for clip in clip_ids if clip not in self._kept]
        frames = zip(new, self.frames.read(new), strict=True)
        computed = {clip: self._source.states(values) for clip, values in frames}
        found = [self._kept[clip] if clip in self._kept else computed[clip] for clip in clip_ids]
        for clip, states in computed.items():
            if self._bytes + states.nbytes <= _KEPT_BYTES:
                self._kept[clip] = states
                self._bytes += states.nbytes
        return found
