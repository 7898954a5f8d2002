"""Build one shard of a spectrogram: decode its clips, compute their frames, write one array.

`compute_shard` is a pure function of its spec, small and picklable both ways; the worker writes the frames, and only counts
and sums travel back. Whatever a clip does to its decoder, the shard goes on without it and says why.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import zarr
from pydantic import PositiveInt, model_validator

from pipeline.artifacts.files import replacing
from pipeline.artifacts.spectrogram import FRAMES, INDEX
from pipeline.artifacts.tables import Table
from pipeline.errors import CorpusError
from pipeline.execution.shards import cut_shards, shard_name
from pipeline.params import Params
from pipeline.spectrogram.decoding import BadClip, TarMember, decode
from pipeline.spectrogram.registry import FrontEnd, FrontEndParams, build_front_end
from pipeline.spectrogram.storing import restore, store

# Frames of one chunk, the unit of reading. Shuffled batches of 5 s clips read equally fast, within the noise, with 64 to
# 512 of them; at 1024 a cold read decompresses too much that was not asked for.
_CHUNK_FRAMES = 256

_EXAMPLES = 3  # of each reason, when too many clips failed


class ClipsPerShard(Params):
    """How many clips a shard holds; see `pipeline/execution/shards.py`."""

    minimum: PositiveInt
    average: PositiveInt
    maximum: PositiveInt

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.minimum <= self.average <= self.maximum:
            raise ValueError(f"minimum {self.minimum} <= average {self.average} <= maximum {self.maximum} must hold")
        return self


class ValueRange(Params):
    """The values that the 256 steps of uint8 span; values outside are clipped to it, and counted."""

    low: float  # in the units of the front end
    high: float  # in the units of the front end

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low {self.low} < high {self.high} must hold")
        return self


class SpectrogramParams(Params):
    """Settings of the stage spectrogram."""

    front_end: FrontEndParams
    dtype: Literal["float32", "float16", "uint8"]  # as stored
    uint8_range: ValueRange  # read when dtype is uint8
    clips_per_shard: ClipsPerShard

    @property
    def facts(self) -> dict[str, Any]:
        """Return the facts of the artifact: those of the front end, and how values are stored."""
        scale, offset = 1.0, 0.0
        if self.dtype == "uint8":
            offset, scale = self.uint8_range.low, (self.uint8_range.high - self.uint8_range.low) / 255
        return build_front_end(self.front_end).facts | {"dtype": self.dtype, "scale": scale, "offset": offset}


@dataclass(frozen=True)
class Clip:
    """One clip as the manifest lists it."""

    clip_id: str
    source: str  # file below the corpus root
    start: float  # seconds
    duration: float  # seconds; 0 = to the end
    content: str  # digest of the encoded audio; empty = missing
    member: str = ""  # of `source` when that is a tar file
    offset: int = 0  # of the member, in bytes
    size: int = 0  # of the member, in bytes


@dataclass(frozen=True)
class ShardSpec:
    """Everything that one shard follows from, and where it goes."""

    name: str
    clips: tuple[Clip, ...]
    params: SpectrogramParams
    root: Path  # of the corpus
    max_duration: float  # seconds
    frames_path: Path  # the Zarr group to write into


@dataclass(frozen=True)
class ShardReport:
    """What became of a shard's clips."""

    name: str
    rows: pa.Table  # of the index, one per clip in the shard's order
    num_frames: int
    num_clipped: int  # values outside uint8_range


def plan_shards(
    clips: Table, params: SpectrogramParams, *, root: Path, max_duration: float, frames_path: Path
) -> list[ShardSpec]:
    """Cut the manifest into shards, in its order; boundaries follow from the clip ids, names from what is in the clips."""
    names = ("clip_id", "source", "start", "duration", "content", "member", "offset", "size")
    columns = (clips.list(name) for name in names)
    rows = [Clip(*row) for row in zip(*columns, strict=True)]
    sizes = params.clips_per_shard
    specs = []
    for part in cut_shards(
        [clip.clip_id for clip in rows], minimum=sizes.minimum, average=sizes.average, maximum=sizes.maximum
    ):
        members = tuple(rows[part.start : part.stop])
        name = shard_name([str((c.clip_id, c.content, c.start, c.duration)) for c in members])
        specs.append(ShardSpec(name, members, params, root, max_duration, frames_path))
    return specs


def compute_shard(spec: ShardSpec) -> ShardReport:
    """Write the frames of the shard's clips, end to end, as the array `spec.name`; clips that fail are reported.

    Holds the stored frames of one shard, and one clip beyond them. A shard without a usable clip writes no array.
    """
    front_end = build_front_end(spec.params.front_end)
    facts = spec.params.facts
    rows: list[tuple[str | int | float, ...]] = []
    pieces: list[np.ndarray] = []
    start = num_clipped = 0
    for clip in spec.clips:
        try:
            log_mel = _compute_clip(spec, clip, front_end)
        except BadClip as error:
            message = error.message.replace(f"{spec.root}/", "")  # the artifact is the same wherever the corpus lies
            rows.append((clip.clip_id, "", 0, 0, 0.0, 0.0, "failed", error.reason, message))
            continue
        stored, clipped = store(log_mel, facts)
        # Statistics are those of what a reader gets, not of what was lost in storing.
        values = restore(stored, facts).astype(np.float64)
        total, squares = float(values.sum()), float(np.square(values).sum())
        rows.append((clip.clip_id, spec.name, start, len(stored), total, squares, "ok", "", ""))
        pieces.append(stored)
        start += len(stored)
        num_clipped += clipped
    if pieces:
        group = zarr.open_group(spec.frames_path, mode="r+")
        with replacing(spec.frames_path / spec.name) as partial:
            FRAMES.arrays["*"].write(group, partial.name, np.concatenate(pieces), (_CHUNK_FRAMES, facts["n_mels"]))
    columns = map(list, zip(*rows, strict=True))
    return ShardReport(spec.name, pa.table(list(columns), schema=INDEX.arrow), start, num_clipped)


def write_index(path: Path, reports: Sequence[ShardReport], facts: dict[str, Any]) -> None:
    """Write the index of finished shards, in the order given."""
    shards = {report.name: report.num_frames for report in reports if report.num_frames}
    rows = pa.concat_tables([INDEX.arrow.empty_table(), *(report.rows for report in reports)])
    INDEX.write(path, rows, {"shards": shards, "front_end": facts})


def count_failed(reports: Sequence[ShardReport]) -> dict[str, int]:
    """Return reason -> number of clips that failed for it, the most frequent first."""
    reasons = Counter(reason for report in reports for reason in report.rows["reason"].to_pylist() if reason)
    return dict(reasons.most_common())


def require_few_failed(reports: Sequence[ShardReport], max_bad_fraction: float) -> None:
    """Raise CorpusError, with the reasons and examples of each, when too large a part of the clips failed."""
    num_clips, failed = sum(report.rows.num_rows for report in reports), count_failed(reports)
    num_failed = sum(failed.values())
    if num_failed <= max_bad_fraction * num_clips:
        return
    examples: dict[str, list[str]] = {reason: [] for reason in failed}
    for report in reports:
        for row in report.rows.filter(pc.equal(report.rows["status"], "failed")).to_pylist():
            if len(examples[row["reason"]]) < _EXAMPLES:
                examples[row["reason"]].append(f"    {row['clip_id']}: {row['message']}")
    lines = [
        f"{num_failed} of {num_clips} clips cannot be used: expected at most the fraction corpus.max_bad_fraction "
        f"{max_bad_fraction}, found {num_failed / num_clips:.4f}; mend or remove the clips, or raise the limit"
    ]
    for reason, count in failed.items():
        lines += [f"  {reason}: {count}", *examples[reason]]
    raise CorpusError("\n".join(lines))


def _compute_clip(spec: ShardSpec, clip: Clip, front_end: FrontEnd) -> np.ndarray:
    waveform = decode(
        spec.root / clip.source,
        start=clip.start,
        duration=clip.duration,
        sample_rate=spec.params.front_end.sample_rate,
        max_duration=spec.max_duration,
        min_samples=front_end.min_samples,
        member=TarMember(clip.member, clip.offset, clip.size, clip.content) if clip.member else None,
    )
    with np.errstate(over="ignore", invalid="ignore"):  # answered below
        log_mel = front_end.log_mel(waveform)
    if not np.isfinite(log_mel).all():
        found = f"samples as large as {np.abs(waveform).max():.3g}"
        raise BadClip("not_finite", f"{spec.root / clip.source}: expected samples about [-1, 1], found {found}")
    return log_mel
