"""Reader of stored frames, many clips at once and in any order.

Conventions: a clip's frames are (frame, mel) float32 in the front end's units (stored values times scale plus offset).

tensorstore fetches and decompresses the chunks of a whole batch in parallel, zarr-python one by one. Its threads do not
survive a fork; a process forked after a read continues with zarr-python. A reader may be
pickled; the receiving process opens the shards itself.
"""

from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from pipeline.artifacts import forks
from pipeline.artifacts.files import distrust
from pipeline.artifacts.spectrogram import FRAMES, Spectrogram
from pipeline.errors import ArtifactError
from pipeline.spectrogram.storing import restore

if TYPE_CHECKING:
    import tensorstore

_CACHE_BYTES = 128 << 20  # of decompressed chunks, kept between reads


class FrameReader:
    """Reader of the frames of one opened spectrogram."""

    def __init__(self, spectrogram: Spectrogram) -> None:
        self._spectrogram = spectrogram
        index = spectrogram.index
        columns = (index.list(name) for name in ("clip_id", "shard", "start", "num_frames", "status"))
        self._places = {
            clip_id: (shard, start, num_frames)
            for clip_id, shard, start, num_frames, status in zip(*columns, strict=True)
            if status == "ok"
        }
        self._arrays: dict[str, tensorstore.TensorStore] = {}
        self._context: tensorstore.Context | None = None
        self._opening = Lock()

    def ok(self, clip_ids: Sequence[str]) -> list[str]:
        """Return the clips that have frames, in the order given."""
        return [clip_id for clip_id in clip_ids if clip_id in self._places]

    def num_frames(self, clip_id: str) -> int:
        """Return the number of frames of a clip. Raises KeyError for a clip that is unknown or failed."""
        return int(self._places[clip_id][2])

    def read(self, clip_ids: Sequence[str]) -> list[np.ndarray]:
        """Return the frames (frame, mel) float32 of each clip, in the order given; the caller bounds the batch.

        Raises KeyError for a clip that is unknown or failed (see `ok`), ArtifactError naming the shard where a chunk is
        damaged or missing.
        """
        return [restore(values, self._spectrogram.metadata) for values in self.read_stored(clip_ids)]

    def read_stored(self, clip_ids: Sequence[str]) -> list[np.ndarray]:
        """Return the values (frame, mel) of each clip as they are stored (see `pipeline/spectrogram/storing.py`).

        Raises as `read` does. Several threads may read at once.
        """
        places = [self._places[clip_id] for clip_id in clip_ids]
        if forks.threads_lost():
            return _read_by_zarr(self._spectrogram, places)
        pending = [(shard, self._open(shard)[start : start + count].read()) for shard, start, count in places]
        return [self._wait(shard, future) for shard, future in pending]  # all are fetched in parallel

    def _wait(self, shard: str, future: "tensorstore.Future[np.ndarray]") -> np.ndarray:
        try:
            values = future.result()
        except ValueError as error:
            raise self._damaged(shard, error) from None
        return values

    def __getstate__(self) -> dict[str, object]:
        """Return the state without open shards."""
        return {"_spectrogram": self._spectrogram, "_places": self._places}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__ |= state | {"_arrays": {}, "_context": None, "_opening": Lock()}

    def _open(self, shard: str) -> "tensorstore.TensorStore":
        with self._opening:
            if shard not in self._arrays:
                self._arrays[shard] = self._open_anew(shard)
            return self._arrays[shard]

    def _open_anew(self, shard: str) -> "tensorstore.TensorStore":
        import tensorstore  # here: stages that read only the index start without it

        forks.threads_start()
        if self._context is None:
            self._context = tensorstore.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})
        store = {"driver": "file", "path": str((self._spectrogram.frames_path / shard).absolute())}
        spec = {
            "driver": "zarr3",
            "kvstore": store,
            "recheck_cached_data": "open",
            # Otherwise a missing file would read as the fill value: silence.
            "fill_missing_data_reads": False,
        }
        try:
            return tensorstore.open(spec, read=True, context=self._context).result()
        except ValueError as error:
            raise self._damaged(shard, error) from None

    def _damaged(self, shard: str, error: Exception) -> ArtifactError:
        return _damage(self._spectrogram.frames_path / shard, error)


def _read_by_zarr(spectrogram: Spectrogram, places: Sequence[tuple[str, int, int]]) -> list[np.ndarray]:
    """Return the stored frames of each (shard, start, number of frames), read by zarr-python.

    Raises ArtifactError that names the shard.
    """
    path = spectrogram.frames_path
    group, _ = FRAMES.open_group(path)
    arrays = {shard: FRAMES.open_array(path, group, shard) for shard in {place[0] for place in places}}
    stored = []
    for shard, start, num_frames in places:
        try:
            stored.append(np.asarray(arrays[shard][start : start + num_frames]))
        except (ValueError, RuntimeError) as error:
            raise _damage(path / shard, error) from None
    return stored


def _damage(shard: Path, error: Exception) -> ArtifactError:
    """Return the error for a damaged shard, after its files lost the times for which the memo and DVC would trust them."""
    distrust(shard)
    return FRAMES.error(shard, "chunk", expected="frames as written", found=str(error).splitlines()[0])
