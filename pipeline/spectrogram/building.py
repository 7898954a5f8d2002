"""Building of a spectrogram, shard by shard: finished shards come from the memo, others are computed; then the index.

`compute_shard` is a pure function of its spec; spec and result are small and picklable, and the worker itself writes the
shard into the memo store. Known clips of a changed shard are copied from the entry that holds their frames, or decoded where
that entry is damaged or gone. A clip that cannot be decoded is recorded with the reason, and the shard continues without it.
A failure that may pass (the file is missing or cannot be read just now) is not remembered.
"""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import zarr

from pipeline.artifacts.clips import ClipTable
from pipeline.artifacts.settings import SETTINGS
from pipeline.artifacts.spectrogram import FRAMES, INDEX, FrameRecord, IndexMetadata, SpectrogramMetadata
from pipeline.corpora.content import forget
from pipeline.errors import CorpusError
from pipeline.execution.memo import Entry, LostEntry, Memo
from pipeline.execution.shards import cut_shards, shard_name
from pipeline.spectrogram.computing import (
    PASSING_REASONS,
    Clip,
    compute_clip,
    computing_version,
    write_frames,
)
from pipeline.spectrogram.copies import Copy, CopyFrontEnd
from pipeline.spectrogram.front_end import FrontEnd
from pipeline.spectrogram.registry import build_front_end
from pipeline.spectrogram.settings import ClipsPerShard, SpectrogramParams
from pipeline.spectrogram.sources import BadClip

log = logging.getLogger(__name__)

_ARRAY, _ROWS = "frames", "rows.parquet"  # files of a memo entry
_UNSETTLED = ".unsettled"  # suffix of entries with clips whose failure may be temporary

_ROWS_SCHEMA = INDEX.arrow.append(pa.field("num_clipped", pa.int64(), nullable=False))

_EXAMPLES = 6  # causes per reason, in the message when too many clips failed
_VARYING = re.compile(
    r"-?\d[\d.]*(e[+-]?\d+)?|'[^']*'"
)  # what differs between messages of one cause: numbers and names


class ShardRecord(FrameRecord):
    """One row of a memo entry: a clip's row of the index, and how many of its values were clipped."""

    num_clipped: int


class KnownRecord(ShardRecord):
    """A row of another entry of the memo."""

    entry: str  # name


class _Outcome(TypedDict):
    """Outcome of a clip, independent of its place in the shard."""

    sum: float
    sum_of_squares: float
    sample_rate: int
    num_channels: int
    bandwidth: float
    num_clipped: int
    status: str
    reason: str
    message: str


@dataclass(frozen=True)
class ShardPlan:
    """Name, clips and position of one shard of the plan."""

    name: str
    start: int  # row of the manifest
    stop: int


@dataclass(frozen=True)
class ShardSpec:
    """Input of `compute_shard`: everything that the content of one shard depends on, and its destination."""

    name: str
    clips: tuple[Clip, ...]
    known: dict[str, KnownRecord]  # by clip key
    params: SpectrogramParams
    root: Path  # of the corpus
    max_duration: float  # seconds
    memo: Memo
    copy: Copy | None = None  # what the frames are of; None = the clips themselves

    def __str__(self) -> str:
        return f"shard {self.name}: {len(self.clips)} clips, {self.clips[0].source} ... {self.clips[-1].source}"


@dataclass(frozen=True)
class ShardReport:
    """Result of `compute_shard`."""

    name: str
    entry: str  # name of the memo entry
    decoded: int  # clips whose frames were computed
    reused: int  # clips that were copied from another entry


@dataclass
class Reuse:
    """Parts of a plan that the memo holds: finished shards, and clips of the others."""

    entries: dict[str, Entry] = field(default_factory=dict)  # shard -> its entry, if finished
    todo: list[ShardPlan] = field(default_factory=list)
    known: dict[str, KnownRecord] = field(default_factory=dict)  # clips of `todo`, by clip key

    def donors(self) -> set[str]:
        """Return the names of the entries that hold known clips of other shards."""
        return {row["entry"] for row in self.known.values()}


def open_memo(root: Path, params: SpectrogramParams, max_duration: float, copy: Copy | None = None) -> Memo:
    """Open the memo's version for these params and the current code, of clips or of a copy of them."""
    front_end = build_front_end(params.front_end)
    settings: dict[str, object] = {"metadata": params.metadata, "max_duration": max_duration}
    if copy is None:
        return Memo(root, "spectrogram", params=settings, code=computing_version(front_end))
    settings["copy"] = copy.changes
    return Memo(root, "spectrogram", params=settings, code=computing_version(front_end, CopyFrontEnd))


def plan_shards(clips: ClipTable, sizes: ClipsPerShard) -> list[ShardPlan]:
    """Cut the manifest into shards, in its order; boundaries depend on the clip ids, names on the clips' content."""
    ids = clips.list("clip_id")
    plans = []
    for part in cut_shards(ids, minimum=sizes.minimum, average=sizes.average, maximum=sizes.maximum):
        members = manifest_clips(clips, part.start, part.stop)
        name = shard_name([f"{clip.clip_id}\x1f{clip.key}" for clip in members])
        plans.append(ShardPlan(name, part.start, part.stop))
    return plans


def manifest_clips(clips: ClipTable, start: int, stop: int) -> list[Clip]:
    """Return the clips of some rows of the manifest."""
    rows = clips.columns.slice(start, stop - start)
    names = ("clip_id", "source", "start", "duration", "content", "member", "offset", "size")
    columns = (rows[name].to_pylist() for name in names)
    return list(map(Clip._make, zip(*columns, strict=True)))


def find_known(memo: Memo, plans: Sequence[ShardPlan], clips: ClipTable, *, thorough: bool = False) -> Reuse:
    """Look up in the memo the finished shards, and for the others, which of their clips other entries hold.

    `thorough` compares the finished shards with their digests.
    """
    reuse = Reuse(memo.find_all((plan.name for plan in plans), thorough=thorough))
    reuse.todo = [plan for plan in plans if plan.name not in reuse.entries]
    donors = sorted(memo.names() - set(reuse.entries)) if reuse.todo else []
    if donors:
        wanted = {clip.key for plan in reuse.todo for clip in manifest_clips(clips, plan.start, plan.stop)} - {""}
        keys = pa.array(sorted(wanted), pa.string())
        for name in donors:
            rows = _donated_rows(memo, name)
            # Failed clips are tried again with their shard, so that messages name the file by its current path.
            rows = rows.filter(pc.and_(pc.is_in(rows["key"], keys), pc.equal(rows["status"], "ok")))
            reuse.known |= {row["key"]: row | {"entry": name} for row in rows.to_pylist()}
    return reuse


def shard_specs(
    clips: ClipTable,
    reuse: Reuse,
    params: SpectrogramParams,
    *,
    root: Path,
    max_duration: float,
    memo: Memo,
    copy: Copy | None = None,
) -> Iterator[ShardSpec]:
    """Yield the specs of the shards to compute, lazily."""
    for plan in reuse.todo:
        members = tuple(manifest_clips(clips, plan.start, plan.stop))
        known = {clip.key: reuse.known[clip.key] for clip in members if clip.key in reuse.known}
        yield ShardSpec(plan.name, members, known, params, root, max_duration, memo, copy)


def compute_shard(spec: ShardSpec) -> ShardReport:
    """Write the frames of the shard's clips, end to end, into the memo; clips that fail are reported.

    Memory: the stored frames of one shard, and one clip. A shard without a usable clip has no array.
    """
    rows: list[ShardRecord] = []
    pieces: list[np.ndarray] = []
    start = decoded = reused = 0
    unsettled = False
    for clip, (outcome, frames, known) in zip(spec.clips, _outcomes(spec), strict=True):
        reused += known
        if frames is not None:
            decoded += not known
            pieces.append(frames)
        unsettled |= outcome["reason"] in PASSING_REASONS and bool(clip.key)
        row: ShardRecord = {
            "clip_id": clip.clip_id, "key": clip.key, "shard": "", "start": 0, "num_frames": 0, **outcome
        }  # fmt: skip
        if row["status"] == "ok":
            row["shard"], row["start"], row["num_frames"] = spec.name, start, len(pieces[-1])
            start += len(pieces[-1])
        rows.append(row)
    entry = spec.name + _UNSETTLED * unsettled
    if unsettled:
        spec.memo.forget(entry)  # an earlier attempt may have failed on other clips
    with spec.memo.writing(entry, clips=len(rows), computed=len(rows) - reused) as folder:
        if pieces:
            write_frames(folder, _ARRAY, pieces)
        pq.write_table(pa.Table.from_pylist(rows, schema=_ROWS_SCHEMA), folder / _ROWS)
    return ShardReport(spec.name, entry, decoded, reused)


def _outcomes(spec: ShardSpec) -> list[tuple[_Outcome, np.ndarray | None, bool]]:
    """Return each clip's outcome, its stored frames, and whether another entry held them.

    Clips are read in the order of their places, since Parquet files are read forward.
    """
    front_end, donors = _front_end(spec), _Donors(spec.memo)
    order = sorted(range(len(spec.clips)), key=lambda row: (spec.clips[row].source, spec.clips[row].offset))
    outcomes: dict[int, tuple[_Outcome, np.ndarray | None, bool]] = {}
    for row in order:
        clip = spec.clips[row]
        known = spec.known.get(clip.key)
        stored = donors.read(known) if known else None
        if known and stored is not None:
            outcomes[row] = _usable(known), stored, True
        else:
            outcomes[row] = *_compute(spec, clip, front_end), False
    return [outcomes[row] for row in range(len(order))]


def _front_end(spec: ShardSpec) -> FrontEnd:
    params = spec.params.front_end
    return build_front_end(params) if spec.copy is None else CopyFrontEnd(params, spec.copy)


def _compute(spec: ShardSpec, clip: Clip, front_end: FrontEnd) -> tuple[_Outcome, np.ndarray | None]:
    """Return the outcome of a clip that is decoded, and its stored frames; None where it cannot be used."""
    try:
        frames = compute_clip(clip, front_end, spec.params.metadata, root=spec.root, max_duration=spec.max_duration)
    except BadClip as error:
        message = error.message.replace(f"{spec.root}/", "")  # independent of where the corpus lies
        return {
            "sum": 0.0, "sum_of_squares": 0.0, "sample_rate": 0, "num_channels": 0, "bandwidth": 0.0, "num_clipped": 0,
            "status": "failed", "reason": error.reason, "message": message,
        }, None  # fmt: skip
    return _usable(vars(frames)), frames.stored


def _usable(measured: Mapping[str, Any]) -> _Outcome:
    """Return the outcome of a clip whose frames were measured, now or in another entry."""
    names = ("sum", "sum_of_squares", "sample_rate", "num_channels", "bandwidth", "num_clipped")
    outcome: dict[str, Any] = {name: measured[name] for name in names}
    return cast(_Outcome, outcome | {"status": "ok", "reason": "", "message": ""})


class _Donors:
    """Stored frames of known clips, read from other entries of the memo."""

    def __init__(self, memo: Memo) -> None:
        self._memo = memo
        self._arrays: dict[str, zarr.Array[Any]] = {}
        self._lost: set[str] = set()  # entries

    def read(self, row: KnownRecord) -> np.ndarray | None:
        """Return a clip's frames, or None where its entry is damaged or gone; a damaged one is removed, with a warning."""
        name = row["entry"]
        if name in self._lost:
            return None
        try:
            if name not in self._arrays:
                self._arrays[name] = zarr.open_array(self._memo.path / name / _ARRAY, mode="r")
            frames = np.asarray(self._arrays[name][row["start"] : row["start"] + row["num_frames"]])
        except FileNotFoundError:
            self._lose(name, "gone")
        except OSError:  # says nothing about the entry
            raise
        except Exception as error:  # zarr raises many kinds
            self._lose(name, f"damaged ({type(error).__name__}: {' '.join(str(error).split())})")
        else:
            if self._memo.holds(name):
                return frames
            self._lose(name, "gone")  # chunks that are missing read as the fill value
        return None

    def _lose(self, name: str, found: str) -> None:
        log.warning("%s: expected frames of known clips, found it %s; decoding them", self._memo.path / name, found)
        self._memo.forget(name)
        self._lost.add(name)


def assemble(
    path: Path,
    plans: Sequence[ShardPlan],
    entries: dict[str, Entry],
    memo: Memo,
    metadata: SpectrogramMetadata,
    settings: dict[str, object],
    copy: Copy | None = None,
) -> pa.Table:
    """Assemble the artifact at `path` from finished entries, in the order of the plan, and return its rows.

    `settings` is recorded in it. Raises LostEntry.
    """
    FRAMES.create(path / "frames.zarr", metadata)
    shards: dict[str, int] = {}
    rows = [_ROWS_SCHEMA.empty_table()]
    for plan in plans:
        entry = entries[plan.name]
        rows.append(_read_rows(entry))
        num_frames = int(pc.sum(rows[-1]["num_frames"]).as_py() or 0)
        if num_frames:
            entry.link(_ARRAY, path / "frames.zarr" / plan.name)
            shards[plan.name] = num_frames
    table = pa.concat_tables(rows)
    index = table.select(INDEX.arrow.names)
    about: IndexMetadata = {
        "shards": shards, "front_end": metadata, "version": memo.version, SETTINGS: settings
    }  # fmt: skip
    if copy is not None:
        about["copy"] = copy.changes
    INDEX.write(path / "index.parquet", index, about)
    return table


def _read_rows(entry: Entry) -> pa.Table:
    return pq.read_table(pa.BufferReader(entry.read(_ROWS)))


def _donated_rows(memo: Memo, name: str) -> pa.Table:
    """Return the rows of another entry; none where it is damaged or gone."""
    try:
        entry = memo.find(name)
        return _read_rows(entry) if entry else _ROWS_SCHEMA.empty_table()
    except LostEntry:
        return _ROWS_SCHEMA.empty_table()


def count_failed(rows: pa.Table) -> dict[str, int]:
    """Return reason -> number of failed clips, the most frequent first."""
    counts = rows.filter(pc.equal(rows["status"], "failed")).group_by("reason").aggregate([("reason", "count")])
    pairs = zip(counts["reason"].to_pylist(), counts["reason_count"].to_pylist(), strict=True)
    return dict(sorted(pairs, key=lambda pair: (-pair[1], pair[0])))


def forget_moved(rows: pa.Table, clips: ClipTable, root: Path) -> None:
    """Make the next run of `corpus` read the files that have another content than the manifest says.

    It would take an unchanged size and time as evidence that they are the same.
    """
    moved = rows.filter(pc.equal(rows["reason"], "moved"))["clip_id"]
    sources = clips["source"].filter(pc.is_in(clips["clip_id"], moved.combine_chunks()))
    if len(sources):
        forget(root / source for source in pc.unique(sources).to_pylist())


def require_few_failed(rows: pa.Table, max_bad_fraction: float, root: Path) -> None:
    """Raise CorpusError, with the reasons and an example of each cause, when too large a fraction of the clips failed.

    `root` is the corpus's, which messages in the index leave out.
    """
    num_clips, failed = rows.num_rows, count_failed(rows)
    num_failed = sum(failed.values())
    if num_failed <= max_bad_fraction * num_clips:
        return
    lines = [
        f"{num_failed} of {num_clips} clips cannot be used: expected at most the fraction corpus.max_bad_fraction "
        f"{max_bad_fraction}, found {num_failed / num_clips:.4f}; repair or remove the clips, or raise the limit"
    ]
    for reason, count in failed.items():
        lines += [f"  {reason}: {count}", *_examples(rows.filter(pc.equal(rows["reason"], reason)), root)]
    raise CorpusError("\n".join(lines))


def _examples(rows: pa.Table, root: Path) -> Iterator[str]:
    """Yield a line for each cause among failed clips and each suffix of their files, the most frequent first."""
    found: dict[tuple[str, str], list[str]] = {}
    for clip_id, message in zip(rows["clip_id"].to_pylist(), rows["message"].to_pylist(), strict=True):
        path, _, rest = message.partition(": ")
        cause = _VARYING.sub("", rest.replace(path, ""))
        found.setdefault((Path(path).suffix.lower(), cause), []).append(f"{clip_id}: {root}/{message}")
    causes = sorted(found.values(), key=len, reverse=True)
    for lines in causes[:_EXAMPLES]:
        yield f"    {lines[0]}" + (f" ({len(lines) - 1} more like it)" if len(lines) > 1 else "")
    if len(causes) > _EXAMPLES:
        yield f"    and {len(causes) - _EXAMPLES} other causes"
