"""Clips as padded, masked torch batches.

Conventions: B batch, T frame. A batch is made as its clips are stored: frames (B, T, mel), tokens (B, codebook, T) padded by
the padding token. `StoredBatch.to` takes it to a device and makes of it what a network reads: float32 frames, normalised
and padded with 0, or int64 tokens. The mask is (B, T) bool, True = real, made from clip lengths, never from padded values;
it is None when no clip of the batch is padded, so that nothing downstream pays for it.

There is no DataLoader and no worker process: clips are read by threads of this process, or lie in its memory, so no start
method can deadlock. What `Inputs` returns may be read in a DataLoader's workers all the same, started in any way.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.artifacts.spectrogram import FrontEndMetadata
from pipeline.models.base import Normalisation, normalisation_unit
from pipeline.training.inputs import Inputs
from pipeline.training.normalising import normalise

# Below this many bytes, the clips of a run are kept in memory after the first read, as they are stored.
CACHE_BYTES = 2 << 30
# Batches that are read at once, while training is at work on another: one waits for its chunks while the next asks for its.
READ_AHEAD = 2


class Batch(NamedTuple):
    """Clips on a device, as a network reads them."""

    inputs: Tensor
    mask: Tensor | None
    rows: Tensor  # (B,) position of each clip in the list that the batches were made of


class StoredBatch(NamedTuple):
    """Clips in this process's memory, as they are stored."""

    inputs: Tensor
    mask: Tensor | None
    rows: Tensor
    front_end: FrontEndMetadata
    normalisation: Normalisation | None  # None for tokens

    def to(self, device: torch.device) -> Batch:
        """Take the batch to a device, and make of it there what a network reads."""
        inputs, mask = self.inputs.to(device), None if self.mask is None else self.mask.to(device)
        if self.normalisation is None:
            return Batch(inputs.to(torch.int64), mask, self.rows)
        return Batch(normalise(inputs, mask, self.front_end, self.normalisation), mask, self.rows)


class Batches:
    """Batches of a list of clips, in any order."""

    def __init__(self, inputs: Inputs, clip_ids: Sequence[str], normalisation: Normalisation) -> None:
        self._inputs, self._clip_ids, self._normalisation = inputs, list(clip_ids), normalisation
        self._padding = inputs.metadata.get("vocabulary_size", 0)
        self._cache = inputs.stored(self._clip_ids) if self._bytes() <= CACHE_BYTES else None

    def __len__(self) -> int:
        return len(self._clip_ids)

    def take(self, rows: Sequence[int]) -> StoredBatch:
        """Return the batch of these rows, as it is stored. Threads may ask at once."""
        if self._cache is not None:
            arrays = [self._cache[row] for row in rows]
        else:
            arrays = self._inputs.stored([self._clip_ids[row] for row in rows])
        return self._collate(arrays, rows)

    @property
    def log_unit(self) -> float | None:
        """Say what one unit of the frames is in natural logarithms of power; None if clips differ in it, and for tokens."""
        scale = {"ln(power)": 1.0, "dB": math.log(10) / 10}.get(self._inputs.front_end.get("units", ""))
        kind = self._normalisation["kind"]
        if self._inputs.time_axis or scale is None or kind == "clip":
            return None
        return scale if kind == "none" else scale * normalisation_unit(self._normalisation)

    def ahead(self, row_lists: Iterable[Sequence[int]]) -> Iterator[StoredBatch]:
        """Yield the batch of each list of rows; the next ones are read meanwhile."""
        with ThreadPoolExecutor(READ_AHEAD) as readers:
            waiting: deque[Future[StoredBatch]] = deque()
            for rows in row_lists:
                waiting.append(readers.submit(self.take, rows))
                if len(waiting) > READ_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def in_order(self, size: int, first: int = 0, step: int = 1) -> Iterator[StoredBatch]:
        """Yield all clips in order, `size` a batch; or, of these batches, every `step`-th from the `first` on."""
        for start in range(0, len(self), size)[first::step]:
            yield self.take(range(start, min(start + size, len(self))))

    def _bytes(self) -> int:
        """Return how many bytes all clips take as they are stored."""
        values = sum(self._inputs.num_frames(clip) for clip in self._clip_ids)
        if self._inputs.time_axis:
            return 2 * values * self._inputs.metadata.get("num_codebooks", 1)
        width: int = np.dtype(self._inputs.front_end.get("dtype", "float32")).itemsize
        return values * width * self._inputs.metadata.get("n_mels", 1)

    def _collate(self, arrays: list[np.ndarray], rows: Sequence[int]) -> StoredBatch:
        axis = self._inputs.time_axis
        lengths = np.array([array.shape[axis] for array in arrays])
        longest = int(lengths.max())
        shape = (len(arrays), *(longest if i == axis else size for i, size in enumerate(arrays[0].shape)))
        # Memory by torch: NumPy asks for huge pages from 4 MB on, and the kernel compacts memory to find them.
        padded = torch.empty(shape, dtype=torch.from_numpy(np.empty(0, arrays[0].dtype)).dtype)
        before = (slice(None),) * axis
        for target, array, length in zip(padded.numpy(), arrays, lengths, strict=True):
            target[(*before, slice(length))] = array
            target[(*before, slice(length, None))] = self._padding
        mask = None if (lengths == longest).all() else torch.from_numpy(np.arange(longest) < lengths[:, None])
        normalisation = None if axis else self._normalisation
        return StoredBatch(padded, mask, torch.tensor(list(rows)), self._inputs.front_end, normalisation)
