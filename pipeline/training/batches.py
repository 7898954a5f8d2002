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
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.artifacts.model import Normalisation
from pipeline.artifacts.spectrogram import LN_POWER, QUANTISED, SpectrogramMetadata, count_channels
from pipeline.models.base import SMALLEST_STD, by_channel, normalisation_unit
from pipeline.training.augmentation.partners import Partners
from pipeline.training.augmentation.power import PowerScale
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
    rows: Tensor  # position of each clip in the list of clips
    partners: Partners | None = None  # what the last clips are there for, if not for themselves


class StoredBatch(NamedTuple):
    """Batch of clips in memory, as they are stored."""

    inputs: Tensor
    mask: Tensor | None
    rows: Tensor
    front_end: SpectrogramMetadata
    normalisation: Normalisation | None  # None for tokens
    partners: Partners | None = None

    @property
    def num_clips(self) -> int:
        """Return the number of clips without partners."""
        return len(self.rows) - (0 if self.partners is None else len(self.partners.rows))

    def to(self, device: torch.device) -> Batch:
        """Move the batch to a device, and convert it there to a network's input."""
        inputs, mask = self.inputs.to(device), None if self.mask is None else self.mask.to(device)
        if self.normalisation is None:
            return Batch(inputs.to(torch.int64), mask, self.rows, self.partners)
        frames = normalise(inputs, mask, self.front_end, self.normalisation)
        return Batch(frames, mask, self.rows, self.partners)


class Batches:
    """Batches of a list of clips, in any order."""

    def __init__(
        self,
        inputs: Inputs,
        clip_ids: Sequence[str],
        normalisation: Normalisation,
        frames_read: Callable[[int], int] = int,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """Set the clips; `frames_read` is how many frames a model computes for a clip of so many.

        Clips are kept in memory if they take up to `cache_bytes`.
        """
        self._inputs, self._clip_ids, self._normalisation = inputs, list(clip_ids), normalisation
        self._lengths = [inputs.num_frames(clip) for clip in self._clip_ids]
        self._computed = [frames_read(length) for length in self._lengths]
        self._padding = inputs.metadata.get("vocabulary_size", 0)
        self._cache = inputs.stored(self._clip_ids) if self._bytes() <= cache_bytes else None

    def __len__(self) -> int:
        return len(self._clip_ids)

    def take(self, rows: Sequence[int], partners: Partners | None = None) -> StoredBatch:
        """Return the batch of these rows, as it is stored, and behind them their partners. Thread-safe.

        Partners longer than all other clips of the batch are cut to their length.
        """
        if partners is None:
            return self._collate(self._read(rows), rows)
        longest, axis = max(self._lengths[row] for row in rows), self._inputs.time_axis
        others = self._read(partners.rows.tolist())
        cut = [_cut(array, longest, start, axis) for array, start in zip(others, partners.starts.tolist(), strict=True)]
        together = [*rows, *partners.rows.tolist()]
        return self._collate([*self._read(rows), *cut], together)._replace(partners=partners)

    def _read(self, rows: Sequence[int]) -> list[np.ndarray]:
        if self._cache is not None:
            return [self._cache[row] for row in rows]
        return self._inputs.stored([self._clip_ids[row] for row in rows])

    @property
    def power_scale(self) -> PowerScale | None:
        """Return what normalised frames are as powers.

        None where it differs between clips or channels, and for values that are no levels, such as tokens and MFCCs.
        """
        front_end, normalisation = self._inputs.front_end, self._normalisation
        unit, channels = LN_POWER.get(front_end.get("units", "")), count_channels(front_end)
        if self._inputs.time_axis or unit is None or normalisation["kind"] == "clip" or channels > 1:
            return None
        if normalisation["kind"] == "none":
            return PowerScale(front_end, unit)
        return PowerScale(front_end, unit, normalisation["mean"], normalisation_unit(normalisation))

    def ahead(
        self, row_lists: Iterable[Sequence[int]], draw: Callable[[Sequence[int]], Partners | None] | None = None
    ) -> Iterator[StoredBatch]:
        """Yield the batch of each list of rows, with the partners that `draw` returns for it, with read-ahead."""
        with ThreadPoolExecutor(READ_AHEAD) as readers:
            waiting: deque[Future[StoredBatch]] = deque()
            for rows in row_lists:
                taking = partial(self.take, rows) if draw is None else partial(self.take, rows, draw(rows))
                waiting.append(readers.submit(taking))
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

    def bounded(self, rows: Sequence[int], lengthening: int = 1) -> Iterator[list[int]]:
        """Yield rows in order, in batches within the bound of frames: one, where they are within it together.

        `lengthening` is the factor by which clips may become longer after they are read.
        """
        return padded_batches(rows, self._computed.__getitem__, frames_per_batch=FRAMES_PER_BATCH // lengthening)

    def among(self, versions: Sequence["Batches"], chosen: Sequence[int]) -> "Batches":
        """Return batches of the same clips, where clip k is read as `versions[chosen[k]]` has it, shorter or longer."""
        return _ChosenBatches(self, versions, chosen)

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


class _ChosenBatches(Batches):
    """Batches of clips that are each in one of several versions."""

    def __init__(self, clips: Batches, versions: Sequence[Batches], chosen: Sequence[int]) -> None:
        vars(self).update(vars(clips))
        self._versions, self._chosen = versions, chosen
        self._lengths = [versions[version]._lengths[row] for row, version in enumerate(chosen)]
        self._computed = [versions[version]._computed[row] for row, version in enumerate(chosen)]

    def _read(self, rows: Sequence[int]) -> list[np.ndarray]:
        found: dict[int, np.ndarray] = {}
        for version in {self._chosen[row] for row in rows}:
            members = [row for row in rows if self._chosen[row] == version]
            found |= zip(members, self._versions[version]._read(members), strict=True)
        return [found[row] for row in rows]


def _cut(array: np.ndarray, length: int, start: float, axis: int) -> np.ndarray:
    """Return at most `length` frames of a clip, from `start` in [0, 1) of those that are left out."""
    first = int(start * (max(array.shape[axis] - length, 0) + 1))
    return array[(slice(None),) * axis + (slice(first, first + length),)]


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
    if front_end.get("dtype") in QUANTISED:
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
