"""Read stored frames, many clips at once and in any order.

Conventions: a clip's frames are (frame, mel) float32 in the front end's units (stored values times scale plus offset).

Read with tensorstore: the chunks of a whole batch are fetched and decompressed side by side, where zarr-python goes
through them one by one. Its threads do not survive a fork; a process forked after a read goes on with zarr-python
(`pipeline/spectrogram/forked.py`). A reader may be pickled to another process, which opens the shards itself.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from pipeline.artifacts import forks
from pipeline.artifacts.spectrogram import FRAMES, Spectrogram
from pipeline.spectrogram import forked
from pipeline.spectrogram.storing import restore

_CACHE_BYTES = 128 << 20  # of decompressed chunks, kept between reads
_OWN_REFERENCES = 2  # to a block that nobody uses: the name of who asks, and the question's
_NOTHING = np.empty((0, 0), dtype=np.float32)


class FrameReader:
    """Reads the frames of the clips of one opened spectrogram."""

    def __init__(self, spectrogram: Spectrogram) -> None:
        self._spectrogram = spectrogram
        index = spectrogram.index
        columns = (index.list(name) for name in ("clip_id", "shard", "start", "num_frames", "status"))
        self._places = {
            clip_id: (shard, start, num_frames)
            for clip_id, shard, start, num_frames, status in zip(*columns, strict=True)
            if status == "ok"
        }
        self._arrays: dict[str, Any] = {}
        self._context: Any = None
        self._spare: list[np.ndarray] = []  # the last block that was read into, which may be in use

    def ok(self, clip_ids: Sequence[str]) -> list[str]:
        """Return those of the clips that have frames, in the order given."""
        return [clip_id for clip_id in clip_ids if clip_id in self._places]

    def num_frames(self, clip_id: str) -> int:
        """Return how many frames a clip has; KeyError for a clip that is unknown or failed."""
        return int(self._places[clip_id][2])

    def read(self, clip_ids: Sequence[str]) -> list[np.ndarray]:
        """Return the frames (frame, mel) float32 of each clip, in the order given; the caller bounds the batch.

        They are parts of one block of memory, which is used again when none of them is left.

        Raises KeyError for a clip that is unknown or failed (see `ok`), ArtifactError naming the shard where a chunk is
        damaged or missing.
        """
        places = [self._places[clip_id] for clip_id in clip_ids]
        if forks.threads_lost():
            stored: Iterable[Any] = forked.read_stored(self._spectrogram, places)
        else:
            stored = self._read_stored(places)
        ends = [0, *accumulate(num_frames for _, _, num_frames in places)]
        block, facts = self._memory(ends[-1]), self._spectrogram.facts
        targets = [block[first:last] for first, last in pairwise(ends)]
        return [restore(values, facts, out) for values, out in zip(stored, targets, strict=True)]

    def _memory(self, num_frames: int) -> np.ndarray:
        """Return a block (frame, mel) for what is read: the last one again, once nothing that was read into it is in use.

        Touching memory that the system hands out anew takes several times as long as what is done to a clip here.
        """
        try:
            block = self._spare.pop()  # in one step: of several threads that read, one alone gets it
        except IndexError:
            block = _NOTHING
        if sys.getrefcount(block) != _OWN_REFERENCES or len(block) < num_frames:
            block = np.empty((num_frames, self._spectrogram.n_mels), dtype=np.float32)
        self._spare[:] = [block]
        return block

    def _read_stored(self, places: Sequence[tuple[str, int, int]]) -> Iterator[Any]:
        """Yield the stored values of each place, in order; all are fetched at once."""
        pending = [(shard, self._open(shard)[start : start + count].read()) for shard, start, count in places]
        for shard, future in pending:
            try:
                yield future.result()
            except ValueError as error:
                raise self._damaged(shard, error) from None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is open."""
        return self.__dict__ | {"_arrays": {}, "_context": None, "_spare": []}

    def _open(self, shard: str) -> Any:
        if shard not in self._arrays:
            import tensorstore  # here: stages that read the index alone start without it

            forks.threads_start()
            if self._context is None:
                self._context = tensorstore.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})
            store = {"driver": "file", "path": str((self._spectrogram.frames_path / shard).absolute())}
            spec = {
                "driver": "zarr3",
                "kvstore": store,
                "recheck_cached_data": "open",
                # Else a lost file would read as the fill value: silence.
                "fill_missing_data_reads": False,
            }
            try:
                self._arrays[shard] = tensorstore.open(spec, read=True, context=self._context).result()
            except ValueError as error:
                raise self._damaged(shard, error) from None
        return self._arrays[shard]

    def _damaged(self, shard: str, error: ValueError) -> Exception:
        path = self._spectrogram.frames_path / shard
        return FRAMES.error(path, "chunk", expected="frames as written", found=str(error).splitlines()[0])
