"""Manifest of a corpus: validation of the listed clips, content digests of their files, and refresh on disk.

Conventions: the manifest holds neither times nor absolute paths, and is sorted by clip id, so that the same corpus gives
the same manifest on every machine. A clip whose file is missing stays in it, with no content.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.artifacts.clips import CLIPS, ClipsMetadata, ClipTable, open_clips
from pipeline.artifacts.missing import MISSING, MissingMetadata, open_missing
from pipeline.artifacts.settings import SETTINGS
from pipeline.artifacts.tables import Table
from pipeline.corpora.base import CorpusListing, corpus_name, reject
from pipeline.corpora.content import STORE_PATH, Contents, content_digests
from pipeline.corpora.registry import CorpusParams, list_corpus
from pipeline.errors import ArtifactError, CorpusError

# Matches sources that are not plain relative paths in their shortest form: these could name one file in several ways.
_MOST_CLASSES = 1 << 16  # positions of labels are stored as uint16
_LONGEST_SECONDS = 1e9  # of a file: thirty years
_TIMES = ("start", "duration")
_NAMED = 10  # files that a warning names
_NOT_BELOW = r"^$|^/|//|/$|(^|/)\.\.?(/|$)"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refresh:
    """Outcome of a refresh of the manifest."""

    num_clips: int  # in the manifest
    num_missing: int  # clips without a file, whether they stay in the manifest or not
    num_hashed: int  # files that were read
    written: bool  # False: the manifest on disk is current and was left as it was
    left_out: Mapping[str, int] = field(default_factory=dict)  # reason -> files or rows that the adapter skipped


def refresh_manifest(
    params: CorpusParams,
    path: Path,
    store_path: Path = STORE_PATH,
    *,
    written_to: Path | None = None,
    missing_path: Path | None = None,
) -> Refresh:
    """Bring the manifest at `path` up to date with the corpus; an unchanged corpus leaves the file untouched.

    With `written_to` a changed manifest is written there, and the one at `path` is left untouched.

    With `missing_path` the clips without audio are listed there, see `pipeline/artifacts/missing.py`.

    Without the corpus's audio, a manifest of the same corpus (pulled from a DVC remote) is kept: artifacts computed from it
    can be used, and only new spectrograms need the audio. Raises CorpusError when there is no such manifest, and for every
    fault of the listing.
    """
    identity = params.identity()
    if not params.root.is_dir() and not params.makes_audio:
        kept = _keep(params, path, identity, found="no such folder")
        _write_missing(missing_path, None, identity)
        return kept
    listing = list_corpus(params)
    columns, contents = manifest_columns(listing, params.root, store_path)
    there = pc.not_equal(columns["content"], "")
    unread = _unread(columns, contents, params.root)
    num_clips, num_missing = len(columns), len(columns) - (pc.sum(there).as_py() or 0)
    if num_missing == num_clips:
        _require_readable(columns.filter(unread), params.root)
        kept = _keep(
            params, path, identity, found=f"none of the {num_missing} clips' files, {columns['source'][0]} for one"
        )
        _write_missing(missing_path, None, identity)
        return kept
    if num_missing:
        first = columns["source"][pc.index(there, False).as_py()]
        log.warning(
            "%d of %d clips have no readable file below %s, %s for one%s",
            num_missing,
            num_clips,
            params.root,
            first,
            "; corpus.missing is drop, so they are left out of the manifest" if listing.missing == "drop" else "",
        )
    _write_missing(missing_path, _missing(listing, columns, unread), identity)
    if listing.missing == "drop" and num_missing:
        columns = columns.filter(pc.or_(there, unread))  # what is there and cannot be read is not missing
    metadata: ClipsMetadata = {
        "corpus": identity,
        "classes": list(listing.classes),
        "label_kind": listing.label_kind,
        "licence": listing.licence,
        SETTINGS: params.settings(),
    }
    if listing.class_ids is not None:
        metadata["class_ids"] = list(listing.class_ids)
    written = not _holds(path, columns, metadata)
    if written:
        CLIPS.write(written_to or path, columns, metadata)
    return Refresh(len(columns), num_missing, contents.num_hashed, written, listing.left_out)


def manifest_columns(listing: CorpusListing, root: Path, store_path: Path = STORE_PATH) -> tuple[pa.Table, Contents]:
    """Return the manifest's columns, checked and sorted, and the content digests of the files.

    Raises CorpusError that names all faults of the listing at once.
    """
    clips = listing.table().combine_chunks()
    positions = check_listing(listing, clips, root)
    for name, values in positions.items():
        clips = clips.set_column(clips.column_names.index(name), name, values)
    clips = clips.sort_by("clip_id")
    in_tar = pc.not_equal(clips["member"], "")
    sources = pc.unique(clips["source"].filter(pc.invert(in_tar))).sort()
    contents = content_digests([f"{root}/{source}" for source in sources.to_pylist()], store_path)
    digests = pa.array(contents.digests, pa.string()).take(pc.index_in(clips["source"], sources))
    group = pc.if_else(pc.equal(clips["group"], ""), clips["source"], clips["group"])
    content = pc.if_else(in_tar, clips["content"], digests)
    for name, values in (("group", group), ("content", content)):
        clips = clips.set_column(clips.column_names.index(name), name, values)
    columns = clips.select(list(CLIPS.columns)).cast(CLIPS.arrow).combine_chunks()
    _warn_of_contradictions(columns, listing.classes)
    return columns, contents


def _warn_of_contradictions(columns: pa.Table, classes: Sequence[str]) -> None:
    """Warn of clips with the same audio, byte for byte and from the same start, that have different labels."""
    rows = columns.filter(pc.not_equal(columns["content"], "")).select(["content", *_TIMES, "clip_id", "labels"])
    counted = rows.group_by(["content", *_TIMES]).aggregate([([], "count_all")])
    copied = counted["content"].filter(pc.greater(counted["count_all"], 1))
    same: dict[tuple[object, ...], list[tuple[str, list[int]]]] = {}
    for row in rows.filter(pc.is_in(rows["content"], pc.unique(copied))).to_pylist():
        same.setdefault((row["content"], row["start"], row["duration"]), []).append((row["clip_id"], row["labels"]))
    contrary = [
        " = ".join(f"{clip} ({', '.join(classes[label] for label in labels) or 'none'})" for clip, labels in clips)
        for clips in same.values()
        if any(labels != clips[0][1] for _, labels in clips)
    ]
    if contrary:
        more = f"; and {len(contrary) - _NAMED} more" * (len(contrary) > _NAMED)
        log.warning(
            "%d times the same audio has different labels, at most one of which is right: %s%s",
            len(contrary), "; ".join(contrary[:_NAMED]), more,
        )  # fmt: skip


def _missing(listing: CorpusListing, columns: pa.Table, unread: pa.Array) -> pa.Table:
    """Return the rows of all clips, as MISSING has them, with the reason where a clip has no audio and "" where it has."""
    clips = listing.table()
    sets = (clips["fold"] if listing.sets is None else listing.sets).take(
        pc.index_in(columns["clip_id"], clips["clip_id"])
    )
    there = pc.not_equal(columns["content"], "")
    reasons = pc.if_else(there, "", pc.if_else(unread, "unreadable", "missing"))
    values = [columns["clip_id"], columns["source"], sets, reasons]
    return pa.table(values, names=list(MISSING.columns)).cast(MISSING.arrow)


def _write_missing(path: Path | None, clips: pa.Table | None, identity: str) -> None:
    """List the clips without audio, of `clips` as `_missing` returns them; None = not known, and a table there is kept."""
    if path is None:
        return
    previous = _previous_missing(path)
    if clips is None:
        if previous is None:
            MISSING.write(path, MISSING.arrow.empty_table(), {"corpus": identity, "listed": {}})
        return
    listed = {str(name): count for name, count in sorted(_counts(clips["set"]))}
    metadata: MissingMetadata = {"corpus": identity, "listed": listed}
    rows = clips.filter(pc.not_equal(clips["reason"], "")).combine_chunks()
    if previous is None or previous.metadata != metadata or not previous.columns.equals(rows):
        MISSING.write(path, rows, metadata)


def _previous_missing(path: Path) -> Table[MissingMetadata] | None:
    try:
        return open_missing(path)
    except ArtifactError:
        return None


def _unread(columns: pa.Table, contents: Contents, root: Path) -> pa.Array:
    """Return for every clip whether its file is there and could not be read."""
    sources = [path.removeprefix(f"{root}/") for path in contents.unreadable]
    members = pc.and_(pc.not_equal(columns["member"], ""), pc.equal(columns["content"], ""))
    return pc.or_(pc.is_in(columns["source"], pa.array(sources, pa.string())), members)


def _require_readable(unread: pa.Table, root: Path) -> None:
    """Raise CorpusError if there are clips whose files are there and could not be read."""
    if len(unread):
        raise CorpusError(
            f"{root}: expected files that can be read, found {len(unread)} clips whose files cannot, {unread['source'][0]} "
            f"for one, and none that can (warnings say why); see to their permissions, or to the disk, and run again"
        )


def check_listing(listing: CorpusListing, clips: pa.Table, root: Path) -> dict[str, pa.Array]:
    """Return `labels` and `unknown` of every clip as positions in the class list, ascending and unique: lists of uint16.

    Raises CorpusError with every clip, label and class that a manifest cannot hold.
    """
    if not len(clips):
        raise CorpusError(f"{root}: expected a corpus with clips, found none listed")
    if not listing.classes:
        raise CorpusError(
            f"{root}: expected clips with labels, found none in any of the {len(clips)} clips; see to the settings of the "
            f"section corpus that say where labels are"
        )
    labels, unknown = (_Positions(clips[name].combine_chunks(), listing.classes) for name in ("labels", "unknown"))
    reject(
        root, _faulty_classes(listing.classes) | _faulty_clips(clips) | _faulty_labels(listing, clips, labels, unknown)
    )
    return {"labels": labels.lists(), "unknown": unknown.lists()}


def _faulty_classes(classes: Sequence[str]) -> dict[str, list[str]]:
    return {
        f"more than {_MOST_CLASSES} classes": [str(len(classes))] * (len(classes) > _MOST_CLASSES),
        "classes listed twice": [name for name, count in _counts(pa.array(classes, pa.string())) if count > 1],
    }


def _faulty_clips(clips: pa.Table) -> dict[str, list[str]]:
    ids, place = clips["clip_id"], ["source", "member", "start"]
    places = clips.select(place).group_by(place).aggregate([([], "count_all")])
    in_range = [pc.and_(pc.less(clips[x], _LONGEST_SECONDS), pc.greater_equal(clips[x], 0.0)) for x in _TIMES]
    weighted = pc.and_(pc.is_finite(clips["weight"]), pc.greater_equal(clips["weight"], 0.0))
    return {
        "clip ids listed twice": _repeated(ids),
        "clips listed twice, by file and start (several labels belong in one row)": [
            f"{'/'.join(filter(None, (row['source'], row['member'])))} at {row['start']:g} s"
            for row in places.filter(pc.greater(places["count_all"], 1)).to_pylist()
        ],
        "clips that are not files below the root": ids.filter(
            pc.match_substring_regex(clips["source"], _NOT_BELOW)
        ).to_pylist(),
        "clips with a negative or endless start or duration": ids.filter(pc.invert(pc.and_(*in_range))).to_pylist(),
        "clips with a negative or endless sampling weight": ids.filter(pc.invert(weighted)).to_pylist(),
    }


def _faulty_labels(
    listing: CorpusListing, clips: pa.Table, labels: "_Positions", unknown: "_Positions"
) -> dict[str, list[str]]:
    classes, ids = listing.classes, clips["clip_id"]
    known = f"where the classes are {', '.join(classes[:20])}{' ...' * (len(classes) > 20)}"
    problems = {
        f"unknown labels, {known}": labels.strangers,
        f"masked labels that are no classes, {known}": unknown.strangers,
        "clips with a label that is masked too": ids.take(pa.array(labels.shared_owners(unknown))).to_pylist(),
    }
    if listing.label_kind == "one":
        wrong = clips.filter(pa.array(labels.per_clip != 1)).select(["clip_id", "labels"]).to_pylist()
        problems["clips without exactly one label, where label_kind is one"] = [
            f"{row['clip_id']} ({', '.join(row['labels']) or 'none'})" for row in wrong
        ]
        problems["clips with masked labels, which label_kind many allows"] = ids.filter(
            pa.array(unknown.per_clip > 0)
        ).to_pylist()
    return problems


class _Positions:
    """Names of classes in lists, one list per clip, as positions in the class list, ascending and unique."""

    def __init__(self, lists: pa.ListArray, classes: Sequence[str]) -> None:
        names, owners = lists.flatten(), pc.list_parent_indices(lists).to_numpy()
        targets = pc.index_in(names, pa.array(classes, pa.string()))
        strange = names.filter(targets.is_null())
        self.strangers = [
            f"{label!r} (of {count} clip{'s' * (count > 1)})" for label, count in sorted(_counts(strange))
        ]
        numbers = pc.fill_null(targets, -1).to_numpy(zero_copy_only=False).astype(np.int64)
        # Names that are no classes are numbered after the classes.
        numbers[numbers < 0] = (1 << 20) + pc.index_in(strange, pc.unique(strange)).to_numpy(zero_copy_only=False)
        pairs = np.sort((owners.astype(np.int64) << 32) + numbers)  # np.unique hashes, which takes five times as long
        self._pairs = pairs[np.diff(pairs, prepend=-1) != 0]
        self.per_clip = np.bincount(self._pairs >> 32, minlength=len(lists))  # (clip,)

    def lists(self) -> pa.ListArray:
        """Return the positions (clip,) as lists of uint16."""
        ends = np.concatenate([[0], np.cumsum(self.per_clip)])
        return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(self._pairs & 0xFFFFFFFF, pa.uint16()))

    def shared_owners(self, other: "_Positions") -> np.ndarray:
        """Return the clips, ascending, that have a name in both."""
        return np.unique(np.intersect1d(self._pairs, other._pairs) >> 32)


def _counts(values: pa.Array | pa.ChunkedArray) -> list[tuple[str, int]]:
    counted = pc.value_counts(values)
    return list(zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True))


def _repeated(values: pa.ChunkedArray) -> list[str]:
    if pc.count_distinct(values).as_py() == len(values):
        return []
    return [value for value, count in _counts(values) if count > 1]


def _keep(params: CorpusParams, path: Path, identity: str, found: str) -> Refresh:
    """Keep the manifest of a corpus whose audio is not on this machine; raise CorpusError if there is no manifest."""
    previous = _previous(path)
    if previous is not None and previous.metadata["corpus"] == identity:
        log.warning(
            "the audio is not on this machine (%s: %s): keeping %s with its %d clips. Computed artifacts can be used; "
            "spectrograms cannot be recomputed.",
            params.root,
            found,
            path,
            len(previous),
        )
        return Refresh(len(previous), previous.list("content").count(""), 0, written=False)
    manifest = "none" if previous is None else f"that of another corpus, {corpus_name(previous.metadata['corpus'])}"
    raise CorpusError(
        f"{params.root}: expected the corpus `{params.kind}` ({params.layout}), found {found}; and to go on without audio, "
        f"expected its manifest at {path}, found {manifest}. Put the corpus there, or set corpus.root in params.yaml to "
        f"where it is, or fetch artifacts that were computed from it with `dvc pull`"
    )


def _holds(path: Path, columns: pa.Table, metadata: ClipsMetadata) -> bool:
    previous = _previous(path)
    return previous is not None and previous.metadata == metadata and previous.columns.equals(columns)


def _previous(path: Path) -> ClipTable | None:
    """Open the manifest of the last run; return None for a damaged one, since it can be made again."""
    try:
        return open_clips(path)
    except ArtifactError as error:
        if path.exists():
            log.warning("%s", error)
        return None
