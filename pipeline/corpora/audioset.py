"""AudioSet adapter: 10 s segments of videos with any number of 527 labels, in published sets (Gemmeke et al., 2017).

<root>     tars or folders of FLAC files, see pipeline/corpora/audioset_files.py
tables     <set>_segments.csv as published: `YTID, start_seconds, end_seconds, "labels"`

The id of a clip is <set>/<video>; its group is the video.
"""

from collections import Counter
from typing import ClassVar, Literal, get_args

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.corpora.audioset_files import place_segments, read_classes, read_segments
from pipeline.corpora.base import CLIP_COLUMNS, AdapterParams, CorpusListing
from pipeline.params import FilePath, PathBelow

LICENCE = "AudioSet's tables are CC BY 4.0, (c) Google; the rights in the audio stay with the authors of the videos"

SetName = Literal["bal_train", "unbal_train", "eval"]
SET_NAMES: tuple[SetName, ...] = get_args(SetName)
_ROLES: dict[SetName, str] = {"bal_train": "train", "unbal_train": "train", "eval": "test"}


class Params(AdapterParams):
    kind: Literal["audioset"]
    tables: dict[SetName, PathBelow | None]  # of segments, below root or absolute; null = without this set
    class_table: FilePath  # index, mid, display_name
    missing: Literal["keep", "drop"]  # segments without audio: kept as missing, or left out of the manifest

    layout: ClassVar[str] = "<set>*.tar, or folders <set>/<first two letters>/<video>.flac"
    published_folds: ClassVar[tuple[str, ...]] = ("train", "test")


def list_clips(params: Params) -> CorpusListing:
    """List the segments of the tables and the places of their audio; a video of two training sets is listed once."""
    mids, names = read_classes(params.class_table)
    left_out: Counter[str] = Counter()
    parts: list[pa.Table] = []
    seen: dict[str, pa.ChunkedArray] = {}  # role -> videos
    for name, role in _ROLES.items():
        path = params.tables.get(name)
        if path is None:
            continue
        segments = read_segments(params.root / path)
        if role in seen:
            again = pc.is_in(segments["video"], seen[role])
            left_out["listed_again"] += pc.sum(again).as_py()
            segments = segments.filter(pc.invert(again))
        places, passed_over = place_segments(params.root, name, segments["video"])
        left_out.update(passed_over)
        seen[role] = segments["video"]
        parts.append(_as_clips(name, role, segments, places))
    clips = pa.concat_tables(parts or [CLIP_COLUMNS.empty_table()]).combine_chunks()
    labels = clips["labels"].combine_chunks()
    known = pa.array(names, pa.string()).take(pc.index_in(labels.flatten(), pa.array(mids, pa.string())))
    # An id that the class table lacks stays as it is: check_listing refuses unknown labels of all corpora.
    named = pa.ListArray.from_arrays(labels.offsets, pc.coalesce(known, labels.flatten()))
    clips = clips.set_column(clips.column_names.index("labels"), "labels", named)
    return CorpusListing(tuple(names), "many", LICENCE, clips, params.missing, left_out)


def _as_clips(name: str, role: str, segments: pa.Table, places: pa.Table) -> pa.Table:
    """Return a set's segments as the columns of a listing; every file is one whole segment."""
    videos = segments["video"]
    zero = pa.repeat(0.0, len(videos))
    columns = {key: places[key] for key in places.column_names} | {
        "clip_id": pc.binary_join_element_wise(name, videos, "/"),
        "labels": segments["labels"],
        "start": zero,
        "duration": zero,
        "group": videos,
        "fold": pa.repeat(role, len(videos)),
    }
    return pa.table({key: columns[key] for key in CLIP_COLUMNS.names}, schema=CLIP_COLUMNS)
