"""Summary of a corpus for the data page: counts and distributions of its clips, from the manifest, index and splits.

Everything is counted in columns, so that memory is that of the opened tables, whatever the number of clips.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.artifacts.clips import ClipTable, LabelKind
from pipeline.artifacts.missing import MissingMetadata
from pipeline.artifacts.spectrogram import Spectrogram
from pipeline.artifacts.splits import ROLES, SplitMetadata
from pipeline.artifacts.tables import Table
from pipeline.artifacts.training_labels import TrainingLabelTable

_MOST_TOGETHER = 30  # classes of the co-occurrence matrix: those with most clips
_NAMED_CLIPS = 5  # of each reason for which clips cannot be used
_BINS = 40


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts (bin,) between edges (bin + 1,)."""

    counts: np.ndarray
    edges: np.ndarray


@dataclass(frozen=True, eq=False)
class ClassCounts:
    """Clips of every class, and how the classes are recorded; all arrays are (class,)."""

    names: Sequence[str]
    clips: np.ndarray
    usable: np.ndarray  # decoded
    groups: np.ndarray
    unknown: np.ndarray  # clips of which nobody has said whether they have the class
    bandwidth: np.ndarray  # median of the usable clips, Hz; NaN without any
    seconds: np.ndarray  # median duration; NaN without any


@dataclass(frozen=True)
class BadReason:
    """Clips that cannot be used for one reason."""

    reason: str
    count: int
    examples: Sequence[tuple[str, str]]  # clip and message


@dataclass(frozen=True, eq=False)
class DataSummary:
    """What the data page shows."""

    num_clips: int
    num_usable: int
    num_groups: int
    largest_group: int  # clips
    hours: float  # of usable clips
    label_kind: LabelKind
    durations: Histogram  # seconds
    bandwidths: Histogram  # Hz
    rates: Sequence[tuple[int, int]]  # Hz, clips; the most frequent first
    channels: Sequence[tuple[int, int]]
    labels_per_clip: Sequence[tuple[int, int]]
    classes: ClassCounts
    together: np.ndarray  # (class, class) clips that have both, of the classes `shown`; empty for label kind one
    shown: Sequence[int]
    bad: Sequence[BadReason]
    roles: Mapping[str, Mapping[str, int]]  # fold -> role -> clips
    excluded_why: Mapping[str, str]  # fold -> why clips are excluded
    missing: Mapping[str, tuple[int, int]]  # set -> clips listed, and those without audio
    replaced: int  # clips whose labels are replaced in training
    replaced_by: str  # name of the table


def summarise_data(
    clips: ClipTable,
    spectrogram: Spectrogram,
    splits: Mapping[str, Table[SplitMetadata]],
    missing: Table[MissingMetadata],
    replacing: TrainingLabelTable,
) -> DataSummary:
    """Count everything that the data page shows."""
    index = spectrogram.index
    places = pc.index_in(clips["clip_id"], index["clip_id"].combine_chunks())
    rows = index.columns.select(["status", "num_frames", "sample_rate", "num_channels", "bandwidth"]).take(places)
    usable = pc.equal(rows["status"], "ok").combine_chunks().to_numpy(zero_copy_only=False)
    seconds = rows["num_frames"].to_numpy() / spectrogram.frame_rate
    bandwidth = rows["bandwidth"].to_numpy()
    groups = pc.value_counts(clips["group"]).field("counts")
    classes = _count_classes(clips, usable, seconds, bandwidth)
    many = clips.metadata["label_kind"] == "many"
    shown = np.argsort(-classes.clips, kind="stable")[:_MOST_TOGETHER] if many else np.empty(0, np.int64)
    counted = pc.value_counts(pc.list_value_length(clips["labels"]))
    return DataSummary(
        num_clips=len(clips),
        num_usable=int(usable.sum()),
        num_groups=len(groups),
        largest_group=int(pc.max(groups).as_py() or 0),
        hours=float(seconds[usable].sum() / 3600),
        label_kind=clips.metadata["label_kind"],
        durations=_histogram(seconds[usable]),
        bandwidths=_histogram(bandwidth[usable], high=spectrogram.metadata["sample_rate"] / 2),
        rates=_value_counts(rows["sample_rate"].filter(pa.array(usable))),
        channels=_value_counts(rows["num_channels"].filter(pa.array(usable))),
        labels_per_clip=sorted(
            zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True)
        ),
        classes=classes,
        together=_together(clips, shown),
        shown=shown.tolist(),
        bad=_bad_reasons(spectrogram),
        roles={fold: _count_roles(split) for fold, split in splits.items()},
        excluded_why={fold: _why_excluded(split) for fold, split in splits.items()},
        missing=_count_missing(missing),
        replaced=len(replacing),
        replaced_by=replacing.metadata["table"],
    )


def _histogram(values: np.ndarray, high: float | None = None) -> Histogram:
    """Return a histogram from 0 to `high`, by default to the largest value."""
    top = high or float(values.max(initial=0)) or 1.0
    counts, edges = np.histogram(values, bins=_BINS, range=(0, top * (1 + 1e-9)))
    return Histogram(counts, edges)


def _value_counts(values: pa.ChunkedArray) -> list[tuple[int, int]]:
    counted = pc.value_counts(values)
    pairs = zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True)
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))


def _count_classes(clips: ClipTable, usable: np.ndarray, seconds: np.ndarray, bandwidth: np.ndarray) -> ClassCounts:
    names = clips.metadata["classes"]
    labels = clips["labels"].combine_chunks()
    owners, targets = pc.list_parent_indices(labels).to_numpy(), labels.flatten().to_numpy().astype(np.int64)
    groups = pc.index_in(clips["group"], pc.unique(clips["group"])).to_numpy().astype(np.int64)
    pairs = np.unique(targets * (int(groups.max(initial=0)) + 1) + groups[owners])
    unknown = clips["unknown"].combine_chunks().flatten().to_numpy().astype(np.int64)
    size, decoded = len(names), usable[owners]
    return ClassCounts(
        names,
        np.bincount(targets, minlength=size),
        np.bincount(targets[decoded], minlength=size),
        np.bincount(pairs // (int(groups.max(initial=0)) + 1), minlength=size),
        np.bincount(unknown, minlength=size),
        _medians(bandwidth[owners[decoded]], targets[decoded], size),
        _medians(seconds[owners[decoded]], targets[decoded], size),
    )


def _medians(values: np.ndarray, targets: np.ndarray, size: int) -> np.ndarray:
    """Return the median of the values of each class (class,), NaN without any."""
    order = np.lexsort((values, targets))
    values, counts = values[order], np.bincount(targets, minlength=size)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    medians = np.full(size, np.nan)
    held = counts > 0
    low, high = starts[held] + (counts[held] - 1) // 2, starts[held] + counts[held] // 2
    medians[held] = (values[low] + values[high]) / 2
    return medians


def _together(clips: ClipTable, shown: np.ndarray) -> np.ndarray:
    """Return how many clips have both of two classes (class, class), of the classes `shown`; on the diagonal, of one."""
    from scipy.sparse import csr_matrix

    labels = clips["labels"].combine_chunks()
    owners, targets = pc.list_parent_indices(labels).to_numpy(), labels.flatten().to_numpy()
    place = np.full(len(clips.metadata["classes"]), -1)
    place[shown] = np.arange(len(shown))
    held = place[targets] >= 0
    ones = np.ones(int(held.sum()), np.int64)
    has = csr_matrix((ones, (owners[held], place[targets[held]])), shape=(len(clips), len(shown)))
    return np.asarray((has.T @ has).todense())


def _bad_reasons(spectrogram: Spectrogram) -> list[BadReason]:
    columns = spectrogram.index.columns
    failed = columns.filter(pc.equal(columns["status"], "failed")).select(["clip_id", "reason", "message"])
    found = []
    for reason, count in _reason_counts(failed["reason"]):
        first = failed.filter(pc.equal(failed["reason"], reason)).slice(0, _NAMED_CLIPS)
        examples = list(zip(first["clip_id"].to_pylist(), first["message"].to_pylist(), strict=True))
        found.append(BadReason(reason, count, examples))
    return found


def _reason_counts(reasons: pa.ChunkedArray) -> list[tuple[str, int]]:
    counted = pc.value_counts(reasons)
    pairs = zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True)
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))


def _count_roles(split: Table[SplitMetadata]) -> dict[str, int]:
    counts = dict(_reason_counts(split["role"]))
    return {role: counts.get(role, 0) for role in ROLES}


def _why_excluded(split: Table[SplitMetadata]) -> str:
    """Return why the split may exclude clips, which follows from its rule."""
    same = (
        "the audio of a clip with a later role (validation, test), byte for byte, or nearly with split.near_duplicates"
    )
    return f"test clips of the outer fold, and {same}" if "inner fold" in split.metadata["rule"] else same


def _count_missing(missing: Table[MissingMetadata]) -> dict[str, tuple[int, int]]:
    counts = dict(_reason_counts(missing["set"]))
    return {name: (listed, counts[name]) for name, listed in missing.metadata["listed"].items() if counts.get(name)}
