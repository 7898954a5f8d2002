"""Clips as padded, masked torch batches.

Conventions: B batch, T frame. A `StoredBatch` holds its clips as they are stored: frames (B, T, mel), or tokens (B,
codebook, T) padded by the padding token. `StoredBatch.to` moves it to a device and converts it to a network's input: float32
frames, normalised and padded with 0, or int64 tokens. The mask is (B, T) bool, True = real, made from clip lengths, never
from padded values; it is None when no clip of the batch is padded, which saves the masking.

There is no DataLoader and no worker process: clips are read by threads of this process, or are in its memory, so no start
method can deadlock. `Inputs` may also be read in a DataLoader's workers, with any start method.

A batch has at most `FRAMES_PER_BATCH` frames, padding and overlapping windows included, unless a single clip has more;
larger ones are divided.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.artifacts.model import Normalisation
from pipeline.artifacts.spectrogram import LN_POWER, SpectrogramMetadata, count_channels
from pipeline.models.base import SMALLEST_STD, by_channel, normalisation_unit
from pipeline.training.inputs import FRAMES_PER_BATCH, Inputs
from pipeline.vocabulary.batching import padded_batches

# Up to this many bytes, the stored clips of a run are kept in memory after the first read.
CACHE_BYTES = 2 << 30
# Batches read in parallel while training computes on another, so that their waits for chunks overlap.
READ_AHEAD = 2


class Batch(NamedTuple):
    """Batch of clips on a device, as a network's input."""

    inputs: Tensor
    mask: Tensor | None
    rows: Tensor  # (B,) position of each clip in the list of clips


class StoredBatch(NamedTuple):
    """Batch of clips in memory, as they are stored."""

    inputs: Tensor
    mask: Tensor | None
    rows: Tensor
    front_end: SpectrogramMetadata
    normalisation: Normalisation | None  # None for tokens

    def to(self, device: torch.device) -> Batch:
        """Move the batch to a device, and convert it there to a network's input."""
        inputs, mask = self.inputs.to(device), None if self.mask is None else self.mask.to(device)
        if self.normalisation is None:
            return Batch(inputs.to(torch.int64), mask, self.rows)
        return Batch(normalise(inputs, mask, self.front_end, self.normalisation), mask, self.rows)


class Batches:
    """Batches of a list of clips, in any order."""

    def __init__(
        self,
        inputs: Inputs,
        clip_ids: Sequence[str],
        normalisation: Normalisation,
        frames_read: Callable[[int], int] = int,
    ) -> None:
        """Set the clips; `frames_read` is how many frames a model computes for a clip of so many."""
        self._inputs, self._clip_ids, self._normalisation = inputs, list(clip_ids), normalisation
        self._lengths = [inputs.num_frames(clip) for clip in self._clip_ids]
        self._computed = [frames_read(length) for length in self._lengths]
        self._padding = inputs.metadata.get("vocabulary_size", 0)
        self._cache = inputs.stored(self._clip_ids) if self._bytes() <= CACHE_BYTES else None

    def __len__(self) -> int:
        return len(self._clip_ids)

    def take(self, rows: Sequence[int]) -> StoredBatch:
        """Return the batch of these rows, as it is stored. Thread-safe."""
        if self._cache is not None:
            arrays = [self._cache[row] for row in rows]
        else:
            arrays = self._inputs.stored([self._clip_ids[row] for row in rows])
        return self._collate(arrays, rows)

    @property
    def log_unit(self) -> float | None:
        """Return the size of one unit of the frames in ln(power).

        None where it differs between clips or channels, and for values that are no levels, such as tokens and MFCCs.
        """
        scale = LN_POWER.get(self._inputs.front_end.get("units", ""))
        kind, channels = self._normalisation["kind"], count_channels(self._inputs.front_end)
        if self._inputs.time_axis or scale is None or kind == "clip" or channels > 1:
            return None
        return scale if kind == "none" else scale * normalisation_unit(self._normalisation)

    def ahead(self, row_lists: Iterable[Sequence[int]]) -> Iterator[StoredBatch]:
        """Yield the batch of each list of rows, with read-ahead."""
        with ThreadPoolExecutor(READ_AHEAD) as readers:
            waiting: deque[Future[StoredBatch]] = deque()
            for rows in row_lists:
                waiting.append(readers.submit(self.take, rows))
                if len(waiting) > READ_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def in_order(self, size: int, first: int = 0, step: int = 1) -> Iterator[StoredBatch]:
        """Yield all clips in order, in batches of at most `size`; or every `step`-th of these batches from `first` on."""
        starts = range(0, len(self), size)
        batches = (rows for start in starts for rows in self.bounded(range(start, min(start + size, len(self)))))
        for rows in islice(batches, first, None, step):
            yield self.take(rows)

    def bounded(self, rows: Sequence[int]) -> Iterator[list[int]]:
        """Yield rows in order, in batches within the bound of frames: one, where they are within it together."""
        return padded_batches(rows, self._computed.__getitem__, frames_per_batch=FRAMES_PER_BATCH)

    def _bytes(self) -> int:
        """Return the number of bytes of all stored clips."""
        values = sum(self._lengths)
        if self._inputs.time_axis:
            return 2 * values * self._inputs.metadata.get("num_codebooks", 1)
        width: int = np.dtype(self._inputs.front_end.get("dtype", "float32")).itemsize
        return values * width * self._inputs.metadata.get("n_mels", 1)

    def _collate(self, arrays: list[np.ndarray], rows: Sequence[int]) -> StoredBatch:
        axis = self._inputs.time_axis
        lengths = np.array([array.shape[axis] for array in arrays])
        longest = int(lengths.max())
        shape = (len(arrays), *(longest if i == axis else size for i, size in enumerate(arrays[0].shape)))
        # Allocated by torch: NumPy requests huge pages from 4 MB on, for which the kernel compacts memory.
        padded = torch.empty(shape, dtype=torch.from_numpy(np.empty(0, arrays[0].dtype)).dtype)
        before = (slice(None),) * axis
        for target, array, length in zip(padded.numpy(), arrays, lengths, strict=True):
            target[(*before, slice(length))] = array
            target[(*before, slice(length, None))] = self._padding
        mask = None if (lengths == longest).all() else torch.from_numpy(np.arange(longest) < lengths[:, None])
        normalisation = None if axis else self._normalisation
        return StoredBatch(padded, mask, torch.tensor(list(rows)), self._inputs.front_end, normalisation)


def normalise(
    stored: Tensor, mask: Tensor | None, front_end: SpectrogramMetadata, normalisation: Normalisation
) -> Tensor:
    """Return stored values (B, T, mel) restored to the front end's units and normalised, as float32; 0 in padding.

    Clips move to the device as they are stored, one or two bytes per value, and become float32 there: reading does not wait
    for the conversion, and half or a quarter of the bytes are transferred.
    """
    frames = stored.to(torch.float32)
    if frames is stored:
        frames = stored.clone()  # the following operations work in place
    if front_end.get("dtype") == "uint8":
        frames.mul_(front_end["scale"]).add_(front_end["offset"])
    channels = frames.chunk(count_channels(front_end), dim=2)
    for channel, statistics in zip(channels, by_channel(normalisation, len(channels)), strict=True):
        _normalise_channel(channel, mask, statistics)
    return frames if mask is None else frames.masked_fill_(~mask[:, :, None], 0.0)


def _normalise_channel(frames: Tensor, mask: Tensor | None, normalisation: Normalisation) -> None:
    """Normalise the frames (B, T, mel) of one channel in place."""
    if normalisation["kind"] == "clip":
        mean, std = _statistics(frames, mask)
        frames.sub_(mean).div_(normalisation["std_scale"] * std.clamp(min=SMALLEST_STD))
    elif normalisation["kind"] != "none":
        frames.sub_(normalisation["mean"]).div_(normalisation_unit(normalisation))


def _statistics(frames: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each clip's own values, (B, 1, 1) each."""
    real = torch.ones_like(frames[:, :, :1]) if mask is None else mask[:, :, None].to(frames.dtype)
    count = real.sum((1, 2), keepdim=True) * frames.shape[2]
    mean = (frames * real).sum((1, 2), keepdim=True) / count
    square = ((frames - mean) * real).square().sum((1, 2), keepdim=True) / count
    return mean, square.sqrt()
