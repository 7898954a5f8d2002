"""Clips as padded, masked torch batches.

Conventions: B batch, T frame. Frames become (B, T, mel) float32, normalised, padded with 0; tokens (B, codebook, T) int64,
padded with the padding token. The mask is (B, T) bool, True = real, made from clip lengths and never from padded values; it
is None when no clip of the batch is padded, so that nothing downstream pays for it.

There is no DataLoader and no worker process: clips are read by threads of this process, or lie in its memory, so no start
method can deadlock. What `Inputs` returns may be read in a DataLoader's workers all the same, started in any way.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.training.inputs import Inputs

# Below this many bytes, the clips of a run are kept in memory after the first read.
CACHE_BYTES = 2 << 30


class Batch(NamedTuple):
    inputs: Tensor
    mask: Tensor | None
    rows: Tensor  # (B,) position of each clip in the list that the batches were made of

    def to(self, device: torch.device) -> "Batch":
        """Return the batch with inputs and mask on a device."""
        return Batch(self.inputs.to(device), None if self.mask is None else self.mask.to(device), self.rows)


class Batches:
    """Batches of a list of clips, in any order."""

    def __init__(self, inputs: Inputs, clip_ids: Sequence[str], normalisation: dict[str, Any]) -> None:
        self._inputs, self._clip_ids, self._normalisation = inputs, list(clip_ids), normalisation
        self._padding = inputs.facts.get("vocabulary_size", 0)
        values = sum(inputs.num_frames(clip) for clip in self._clip_ids) * inputs.facts.get("n_mels", 1)
        self._cache = self._read(self._clip_ids) if 4 * values <= CACHE_BYTES else None

    def __len__(self) -> int:
        return len(self._clip_ids)

    def take(self, rows: Sequence[int]) -> Batch:
        """Return the batch of these rows."""
        if self._cache is not None:
            arrays = [self._cache[row] for row in rows]
        else:
            arrays = self._read([self._clip_ids[row] for row in rows])
        return self._collate(arrays, rows)

    @property
    def log_unit(self) -> float | None:
        """Say what one unit of the frames is in natural logarithms of power; None if clips differ in it, and for tokens."""
        unit = {"ln(power)": 1.0, "dB": math.log(10) / 10}.get(self._inputs.front_end.get("units", ""))
        kind = self._normalisation["kind"]
        if self._inputs.time_axis or unit is None or kind == "clip":
            return None
        return (
            unit
            if kind == "none"
            else unit * _unit(self._normalisation["deviations"], self._normalisation["deviation"])
        )

    def ahead(self, parts: Iterable[Sequence[int]]) -> Iterator[Batch]:
        """Yield the batch of each list of rows; the next one is read meanwhile."""
        with ThreadPoolExecutor(1) as reader:
            waiting = None
            for rows in parts:
                following = reader.submit(self.take, rows)
                if waiting is not None:
                    yield waiting.result()
                waiting = following
            if waiting is not None:
                yield waiting.result()

    def in_order(self, size: int, first: int = 0, step: int = 1) -> Iterator[Batch]:
        """Yield all clips in order, `size` a batch; or, of these batches, every `step`-th from the `first` on."""
        for start in range(0, len(self), size)[first::step]:
            yield self.take(range(start, min(start + size, len(self))))

    def _read(self, clip_ids: Sequence[str]) -> list[np.ndarray]:
        return [normalise(array, self._normalisation) for array in self._inputs.arrays(clip_ids)]

    def _collate(self, arrays: list[np.ndarray], rows: Sequence[int]) -> Batch:
        axis = self._inputs.time_axis
        lengths = np.array([array.shape[axis] for array in arrays])
        longest = int(lengths.max())
        shape = (len(arrays), *(longest if i == axis else size for i, size in enumerate(arrays[0].shape)))
        padded = np.full(shape, self._padding, dtype=np.int64 if axis else np.float32)
        for target, array in zip(padded, arrays, strict=True):
            target[(slice(None),) * axis + (slice(array.shape[axis]),)] = array
        mask = None if (lengths == longest).all() else torch.from_numpy(np.arange(longest) < lengths[:, None])
        return Batch(torch.from_numpy(padded), mask, torch.tensor(list(rows)))


def normalise(array: np.ndarray, normalisation: dict[str, Any]) -> np.ndarray:
    """Normalise a clip's frames as the facts {kind, deviations, mean, deviation} say; tokens pass unchanged."""
    kind = normalisation["kind"]
    if kind == "none":
        return array
    mean, deviation = normalisation["mean"], normalisation["deviation"]
    if kind == "clip":
        mean, deviation = float(array.mean()), float(array.std())
    unit = _unit(normalisation["deviations"], deviation)
    normalised: np.ndarray = ((array - mean) / unit).astype(np.float32)
    return normalised


def _unit(deviations: float, deviation: float) -> float:
    return deviations * max(deviation, 1e-6)
