"""Log-mel frames of whole clips: a Zarr group with one array a shard, and a Parquet index of the clips in them.

    <path>/frames.zarr/<shard>   (frame, mel): the frames of the shard's clips, end to end; clips may differ in length
    <path>/index.parquet         where each clip lies, or why it has no frames

Copies of the clips with another speed or pitch are artifacts of the same form, of the same clips by the same ids.

Conventions: time first. Stored values times `scale` plus `offset` are log-mel values in `units`. A clip that could not be
used stands in the index with status "failed", a reason, and no frames. The values of several channels stand one channel
after another along `mel`, equally many of each.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NotRequired, TypeAlias, TypedDict

import numpy as np
import pyarrow as pa

from pipeline.artifacts.arrays import ArraySchema, GroupSchema
from pipeline.artifacts.settings import Metadata
from pipeline.artifacts.tables import Table, TableSchema

Mix: TypeAlias = Literal["mean", "left", "right", "loudest"]  # of channels; "right" of mono is the only channel
CLIP_RANGE = "of the clip's range"  # units of frames that are scaled to 0 to 1 within each clip
HIDDEN_STATE = "hidden state"  # units of frames that are no levels of bands, but states of a waveform encoder
SAMPLES = "sample"  # units of frames of the waveform's own samples
RANGE = 80.0  # dB from 0 to 1 of such frames, for what needs a scale: the clip's own range is not kept

QUANTISED = {"uint8": (0, 255), "int16": (-32768, 32767)}  # first and last step of the types of integers

# Size of one unit of log-mel values, in dB and in ln(power); units that are missing measure no level.
DECIBELS = {"dB": 1.0, "ln(power)": 10 / math.log(10), "ln(magnitude)": 20 / math.log(10), CLIP_RANGE: RANGE}
LN_POWER = {"dB": math.log(10) / 10, "ln(power)": 1.0, "ln(magnitude)": 2.0}


class FrontEndMetadata(TypedDict):
    """Metadata of a front end: what its log-mel frames are."""

    front_end: str  # its kind: kaldi, mel, ...
    # Of the first channel: "ln(power)", "ln(magnitude)", "dB", "of the clip's range", "MFCC", "hidden state" or "sample".
    units: str
    sample_rate: int  # Hz
    n_fft: int  # samples
    win_length: int  # samples
    hop_length: int  # samples
    n_mels: int  # values in a frame: mel bands; those of all channels; or MFCCs
    f_min: float  # Hz
    f_max: float  # Hz
    log_floor: float  # smallest value of the first channel, in units
    frame_rate: float  # frames per second = sample_rate / hop_length
    params: dict[str, Any]  # of the front end, enough to build it again (`pipeline/spectrogram/registry.py`)
    channels: NotRequired[list[str]]  # names of the channels; absent = one
    mix: NotRequired[Mix]  # of the channels it gets; absent = mean
    silence: NotRequired[Literal["keep"]]  # absent = silent clips have failed


class SpectrogramMetadata(FrontEndMetadata):
    """Metadata of stored frames: their front end's, and how values are stored."""

    dtype: str  # as stored
    scale: float
    offset: float


class IndexMetadata(Metadata):
    """Metadata of the index."""

    shards: dict[str, int]  # name -> frames in it
    front_end: SpectrogramMetadata  # again
    version: str  # what params and code made the frames, as one digest
    copy: NotRequired[
        dict[str, float]
    ]  # speed (factor) and pitch (semitones) of copies of the clips; absent = the clips


class FrameRecord(TypedDict):
    """One row of the index; see its columns below."""

    clip_id: str
    key: str
    shard: str
    start: int
    num_frames: int
    sum: float
    sum_of_squares: float
    sample_rate: int
    num_channels: int
    bandwidth: float
    status: str
    reason: str
    message: str


# Not compressed: training reads every clip again in every epoch, and zstd makes the file of noisy log-mel frames 18 %
# smaller (uint8, float16 14 %; ESC-10, with its padding, 28 %), but each read of a shuffled batch 1.8 times as long.
FRAMES_ARRAY = ArraySchema(
    ("frame", "mel"), ("float32", "float16", "int16", "uint8"), units="see sonolex.metadata", compress=False
)

FRAMES = GroupSchema(
    name="spectrogram",
    version=1,
    stage="spectrogram",
    arrays={"*": FRAMES_ARRAY},
    metadata=SpectrogramMetadata,
)

INDEX = TableSchema(
    name="spectrogram index",
    version=3,
    stage="spectrogram",
    columns={
        "clip_id": pa.string(),
        "key": pa.string(),  # digest of the audio that was read; empty when its file was missing
        "shard": pa.string(),  # name of the array; empty when failed
        "start": pa.int64(),  # first frame within the shard
        "num_frames": pa.int64(),
        "sum": pa.float64(),  # of all values of the clip, in units
        "sum_of_squares": pa.float64(),
        "sample_rate": pa.int64(),  # of the file, Hz; 0 when failed, as the next two
        "num_channels": pa.int64(),  # of the file
        "bandwidth": pa.float64(),  # highest frequency with sound, Hz, up to half the front end's rate
        "status": pa.string(),  # ok or failed
        "reason": pa.string(),  # one word for counting, empty when ok
        "message": pa.string(),  # for people, empty when ok
    },
    metadata=IndexMetadata,
)


def count_channels(metadata: FrontEndMetadata) -> int:
    """Return the number of channels of a front end's frames."""
    return len(metadata.get("channels", ("",)))


@dataclass(frozen=True)
class Spectrogram:
    """An opened spectrogram: its index and its frames' metadata. `pipeline.spectrogram.reader` reads the frames."""

    path: Path
    index: Table[IndexMetadata]
    metadata: SpectrogramMetadata

    @property
    def frames_path(self) -> Path:
        return self.path / "frames.zarr"

    @property
    def n_mels(self) -> int:
        return int(self.metadata["n_mels"])

    @property
    def frame_rate(self) -> float:
        return float(self.metadata["frame_rate"])


def open_spectrogram(path: Path) -> Spectrogram:
    """Open a spectrogram; check that its metadata is consistent and agrees with the index, and the index with the shards."""
    frames_path, index_path = path / "frames.zarr", path / "index.parquet"
    group, metadata = FRAMES.open_group(frames_path)
    rate = metadata["sample_rate"] / metadata["hop_length"]
    if abs(metadata["frame_rate"] - rate) > 1e-9 * rate:
        expected = f"{rate} (= sample_rate {metadata['sample_rate']} / hop_length {metadata['hop_length']})"
        raise FRAMES.error(frames_path, "frame_rate", expected=expected, found=metadata["frame_rate"])
    if not metadata["win_length"] <= metadata["n_fft"]:
        raise FRAMES.error(
            frames_path, "win_length", expected=f"at most n_fft {metadata['n_fft']}", found=metadata["win_length"]
        )
    if not metadata["f_min"] < metadata["f_max"] <= metadata["sample_rate"] / 2:
        expected = f"f_min {metadata['f_min']} < f_max <= {metadata['sample_rate'] / 2} Hz"
        raise FRAMES.error(frames_path, "f_max", expected=expected, found=metadata["f_max"])
    index = INDEX.open(index_path)
    if index.metadata["front_end"] != metadata:
        recorded = index.metadata["front_end"]
        differing = [key for key in {**metadata, **recorded} if metadata.get(key) != recorded.get(key)]
        found = f"other values of {', '.join(differing)}"
        raise INDEX.error(index_path, "front_end", expected=f"as in {frames_path}", found=found)
    _check_index(index_path, index)
    shards: dict[str, int] = index.metadata["shards"]
    present = {entry.name for entry in frames_path.iterdir() if entry.is_dir()}
    for name, num_frames in shards.items():
        array = FRAMES.open_array(frames_path, group, name)
        expected_shape = (num_frames, metadata["n_mels"])
        if array.shape != expected_shape:
            raise FRAMES.error(frames_path / name, "shape", expected=expected_shape, found=array.shape)
        if str(array.dtype) != metadata["dtype"]:
            raise FRAMES.error(frames_path / name, "dtype", expected=metadata["dtype"], found=array.dtype)
    if present != set(shards):
        raise FRAMES.error(frames_path, "shards", expected=sorted(shards), found=sorted(present))
    return Spectrogram(path, index, metadata)


def _check_index(path: Path, index: Table[IndexMetadata]) -> None:
    """Check that the clips of each shard fill it without gap or overlap."""
    status = np.array(index.list("status"), dtype=object)
    if set(status) - {"ok", "failed"}:
        raise INDEX.error(path, "status", expected="ok or failed", found=sorted(set(status)))
    ok = status == "ok"
    shards = np.array(index.list("shard"), dtype=object)
    starts, counts = index["start"].to_numpy(), index["num_frames"].to_numpy()
    if (counts[~ok] != 0).any():
        raise INDEX.error(path, "num_frames", expected="0 for failed clips", found=int(counts[~ok].max()))
    reached: dict[str, int] = dict.fromkeys(index.metadata["shards"], 0)
    for row in np.flatnonzero(ok):
        if starts[row] != reached.get(shards[row], -1):
            expected = f"start {reached.get(shards[row])} in shard {shards[row]}"
            raise INDEX.error(path, f"row {row}", expected=expected, found=int(starts[row]))
        reached[shards[row]] += int(counts[row])
    if reached != index.metadata["shards"]:
        raise INDEX.error(path, "num_frames", expected=f"sums of {index.metadata['shards']}", found=reached)
