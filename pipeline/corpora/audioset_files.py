"""Readers of AudioSet's files: tables of segments and of classes, and FLAC files in Parquet files, in tars or in folders.

A segment is named by its video, of which a set holds one segment. Mirrors differ in layout; audio is looked for at:

<root>/[data/]<set>/*.parquet, <set>*.parquet    as on Hugging Face since October 2025: columns video_id, audio, labels
<root>/[data/]<set>*.tar                         as before; members named <anything>/<video>.flac
<root>/[audio/]<set>/[<two letters>/]<video>.flac        folders, as tools/expand_audioset.py makes them

Parquet files and tars are read in place. Some mirrors write `Y` before every video. Tars come before Parquet files, and both
before single files, which serve only videos that the others lack. Tables are looked for in <root>/ and in <root>/data/; a
set of Parquet files needs none, for its rows have the labels.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from pipeline.corpora.base import CLIP_COLUMNS, read_class_table, reject
from pipeline.corpora.parquet_audio import SUFFIX, index_parquet, read_columns
from pipeline.corpora.tars import index_tars
from pipeline.errors import CorpusError

log = logging.getLogger(__name__)

SetName = Literal["bal_train", "unbal_train", "eval"]
SET_NAMES: tuple[SetName, ...] = get_args(SetName)
_ROLES: dict[SetName, str] = {"bal_train": "train", "unbal_train": "train", "eval": "test"}

# Of a listing, with the set of each clip, and whether its audio was found.
_COLUMNS = pa.schema([*CLIP_COLUMNS, pa.field("set", pa.string()), pa.field("found", pa.bool_())])

VIDEO_IN_NAME = r"(?:^|/)Y?(?P<video>[A-Za-z0-9_-]{11})\.(?:flac|wav|ogg|mp3)$"
_SEGMENT_COLUMNS = ("video", "start", "end", "labels")
_SEGMENTS = pa.schema({"video": pa.string(), "labels": pa.list_(pa.string())})
_PLACE = pa.schema(
    {
        "video": pa.string(),
        "source": pa.string(),
        "member": pa.string(),
        "offset": pa.int64(),
        "size": pa.int64(),
        "content": pa.string(),
    }
)
_NOWHERE = (("source", ""), ("member", ""), ("offset", 0), ("size", 0), ("content", ""))


def read_sets(root: Path, tables: Mapping[SetName, Path | None]) -> tuple[pa.Table, Counter[str]]:
    """Return the clips of the sets that have a table, labels as ids, and what was left out: reason -> segments or files.

    A video of two training sets is listed once.
    """
    left_out: Counter[str] = Counter()
    parts: list[pa.Table] = []
    seen: dict[str, pa.ChunkedArray] = {}  # role -> videos
    for name, role in _ROLES.items():
        path = tables.get(name)
        if path is None:
            continue
        segments = read_set(root, name, path)
        if role in seen:
            again = pc.is_in(segments["video"], seen[role])
            left_out["listed_again"] += pc.sum(again).as_py()
            segments = segments.filter(pc.invert(again))
        places, passed_over = place_segments(root, name, segments["video"])
        left_out.update(passed_over)
        seen[role] = segments["video"]
        parts.append(_as_clips(name, role, segments, places))
    return pa.concat_tables(parts or [_COLUMNS.empty_table()]).combine_chunks(), left_out


def read_classes(path: Path) -> tuple[list[str], list[str]]:
    """Return the machine ids (`/m/09x0r`) and display names of the class table, in the order of its index.

    This table defines the published 527 classes; the ontology has more, some of which are never used.
    """
    names = read_class_table(path, "mid")
    return list(names), list(names.values())


def find_table(root: Path, path: Path) -> Path:
    """Return the place of a table, below `root` or below its `data/`, where mirrors put it; if in neither, the first."""
    places = (root / path, root / "data" / path)
    return next((place for place in places if place.is_file()), places[0])


def read_set(root: Path, name: str, table: Path) -> pa.Table:
    """Return `video` and `labels` of a set, by its table of segments or, where there is none, by its Parquet files.

    Parquet files list what the mirror has; only the table tells what is missing.
    """
    path, files = find_table(root, table), _parquet_files(root, name)
    if path.is_file() or not files:
        return read_segments(path)
    log.info("%s: no table at %s: taking videos and labels from %d Parquet files", name, path, len(files))
    return pa.concat_tables([_labelled_rows(file) for file in files])


def _labelled_rows(path: Path) -> pa.Table:
    rows = read_columns(path, ["video_id", "labels"])
    if rows.column_names != ["video_id", "labels"]:
        found = ", ".join(rows.column_names) or "neither"
        raise CorpusError(
            f"{path}: expected the columns video_id and labels, found {found}; put AudioSet's table of segments beside it"
        )
    rows = rows.rename_columns(["video", "labels"]).cast(_SEGMENTS)
    empty = rows.filter(pc.equal(pc.list_value_length(rows["labels"]), 0))
    reject(path, {"segments without a label": empty["video"].to_pylist()})
    return rows


def read_segments(path: Path) -> pa.Table:
    """Return `video` and `labels` (machine ids) of a published table of segments."""
    if not path.is_file():
        raise CorpusError(
            f"{path}: expected AudioSet's table of segments, found no such file, there or in a folder data beside it; put "
            f"it there, or set the table of the set in corpus.tables (null = without this set)"
        )
    text = path.read_bytes()
    num_comments = next((i for i, line in enumerate(text.split(b"\n", 100)) if not line.startswith(b"#")), 0)
    try:
        segments = pa.csv.read_csv(
            pa.BufferReader(text.replace(b", ", b",")),  # the CSV reader takes a quote only at the beginning of a cell
            read_options=pa.csv.ReadOptions(column_names=list(_SEGMENT_COLUMNS), skip_rows=num_comments),
            convert_options=pa.csv.ConvertOptions(
                column_types=dict(
                    zip(_SEGMENT_COLUMNS, (pa.string(), pa.float64(), pa.float64(), pa.string()), strict=True)
                ),
                null_values=[],
            ),
        )
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        expected = 'rows of `YTID, start_seconds, end_seconds, "labels"`'
        raise CorpusError(f"{path}: expected {expected}, found {error}") from None
    backwards = segments.filter(pc.invert(pc.less(segments["start"], segments["end"])))
    unlabelled = segments.filter(pc.equal(segments["labels"], ""))
    problems = {
        "segments that end before they begin": backwards["video"].to_pylist(),
        "segments without a label": unlabelled["video"].to_pylist(),
    }
    reject(path, problems)
    return pa.table({"video": segments["video"], "labels": pc.split_pattern(segments["labels"], ",")})


def place_segments(root: Path, name: str, videos: pa.ChunkedArray) -> tuple[pa.Table, Counter[str]]:
    """Return the place of each segment's audio, and whether it was `found`, in their order; and counts of other files.

    A segment without audio gets the path that its file would have. Reasons: refused (unsafe members of tars), not_audio,
    repeated (further files of a video; the first counts), unlisted (videos that are not in the table).
    """
    found, left_out = _find_audio(root, name)
    row = pc.index_in(videos, found["video"])
    left_out["unlisted"] = len(found) - (pc.sum(pc.is_in(found["video"], videos)).as_py() or 0)
    num_missing = row.null_count
    log.info("%s: %d segments, %d of them without audio", name, len(videos), num_missing)
    for reason, count in left_out.items():
        if count:
            log.warning("%s: %d files skipped: %s", name, count, reason)
    file_names = pc.binary_join_element_wise(videos, ".flac", "")
    as_files = pc.binary_join_element_wise(name, pc.utf8_slice_codeunits(videos, 0, 2), file_names, "/")
    places = found.select(["source", "member", "offset", "size", "content"]).take(row)
    columns = {key: pc.fill_null(places[key], as_files if key == "source" else default) for key, default in _NOWHERE}
    return pa.table(columns | {"found": pc.is_valid(row)}), left_out


def _find_audio(root: Path, name: str) -> tuple[pa.Table, Counter[str]]:
    """Find a set's audio, packed and then in folders; return the first _PLACE of each video, and the counts."""
    left_out: Counter[str] = Counter()
    pieces = [*_in_tars(root, name, left_out), *_in_parquet(root, name, left_out), *_in_folders(root, name)]
    files_found = pa.concat_tables([_PLACE.empty_table(), *pieces])
    audio = files_found.filter(pc.not_equal(files_found["video"], ""))
    first = pc.equal(pc.index_in(audio["video"], audio["video"]), pa.array(np.arange(len(audio), dtype=np.int32)))
    found = audio.filter(first)
    left_out["not_audio"] += len(files_found) - len(audio)
    left_out["repeated"] = len(audio) - len(found)
    return found, left_out


def _in_tars(root: Path, name: str, left_out: Counter[str]) -> Iterator[pa.Table]:
    tars = sorted(tar for folder in (root, root / "data") for tar in _files_in(folder, f"{name}*.tar"))
    for path, index in zip(tars, index_tars(tars), strict=True):
        left_out["refused"] += len(index.refused)
        members = index.members
        source = pa.repeat(path.relative_to(root).as_posix(), len(members))
        columns = [_videos(members["name"]), source, *(members[key] for key in ("name", "offset", "size", "digest"))]
        yield pa.table(columns, schema=_PLACE)


def _in_parquet(root: Path, name: str, left_out: Counter[str]) -> Iterator[pa.Table]:
    files = _parquet_files(root, name)
    for path, index in zip(files, index_parquet(files), strict=True):
        left_out["not_audio"] += index.num_empty
        rows, named = index.rows, read_columns(path, ["video_id"])
        videos = named["video_id"].take(rows["row"]) if named.num_columns else _videos(rows["name"])
        source = pa.repeat(path.relative_to(root).as_posix(), len(rows))
        columns = [videos, source, *(rows[key] for key in ("name", "row", "size", "digest"))]
        yield pa.table(columns, names=_PLACE.names).cast(_PLACE)


def _in_folders(root: Path, name: str) -> Iterator[pa.Table]:
    for folder in (root / name, root / "audio" / name):
        walked = _walk_folder(folder, folder.relative_to(root).as_posix())
        files = pa.array((file for file in walked if not file.endswith(SUFFIX)), pa.string())
        nothing, zero = pa.repeat("", len(files)), pa.repeat(pa.scalar(0, pa.int64()), len(files))
        yield pa.table([_videos(files), files, nothing, zero, zero, nothing], schema=_PLACE)


def _parquet_files(root: Path, name: str) -> list[Path]:
    """Return a set's Parquet files: `<set>/*.parquet` and `<set>*.parquet`, below the root or its folder `data`."""
    folders = (root, root / "data")
    inside = [file for folder in folders for file in _files_in(folder / name, f"*{SUFFIX}")]
    return sorted(inside + [file for folder in folders for file in _files_in(folder, f"{name}*{SUFFIX}")])


def _files_in(folder: Path, pattern: str) -> list[Path]:
    """Return the files of a folder by a pattern; `Path.glob` would find none in a folder that may not be listed."""
    try:
        names = os.listdir(folder)  # noqa: PTH208
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [folder / name for name in names if fnmatch(name, pattern) and (folder / name).is_file()]


def _walk_folder(folder: Path, name: str) -> Iterator[str]:
    """Yield the paths, below the root, of the files of a folder and of its subfolders."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.is_dir():
            yield from (f"{name}/{entry.name}/{inner}" for inner in sorted(os.listdir(entry.path)))  # noqa: PTH208
        else:
            yield f"{name}/{entry.name}"


def _videos(names: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Return the video of each file name; empty where the file is not a video's audio."""
    found = pc.struct_field(pc.extract_regex(names, VIDEO_IN_NAME), "video")
    return pc.fill_null(found, "")


def _as_clips(name: str, role: str, segments: pa.Table, places: pa.Table) -> pa.Table:
    """Return a set's segments as _COLUMNS; every file is one whole segment."""
    videos = segments["video"]
    zero = pa.repeat(0.0, len(videos))
    columns = {key: places[key] for key in places.column_names} | {
        "clip_id": pc.binary_join_element_wise(name, videos, "/"),
        "labels": segments["labels"],
        "start": zero,
        "duration": zero,
        "group": videos,
        "fold": pa.repeat(role, len(videos)),
        "set": pa.repeat(name, len(videos)),
    }
    return pa.table({key: columns[key] for key in _COLUMNS.names}, schema=_COLUMNS)
