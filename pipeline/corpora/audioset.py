"""AudioSet adapter: 10 s segments of videos with any number of 527 labels, in published sets (Gemmeke et al., 2017).

<root>     Parquet files, tars or folders of FLAC files, see pipeline/corpora/audioset_files.py
tables     <set>_segments.csv as published: `YTID, start_seconds, end_seconds, "labels"`

The id of a clip is <set>/<video>; its group is the video. A part of AudioSet is chosen by classes, and by a share or number
of each set's clips; without the evaluation set, test clips can be drawn from the training sets (pipeline/corpora/parts.py).
"""

from collections import Counter
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from pipeline.corpora.audioset_files import find_table, place_segments, read_classes, read_set
from pipeline.corpora.base import CLIP_COLUMNS, AdapterParams, CorpusListing, reject
from pipeline.corpora.layouts import FolderContents, Recognised, Setting
from pipeline.corpora.parquet_audio import SUFFIX
from pipeline.corpora.parts import common_classes, part_of, positions_of, with_classes
from pipeline.params import FilePath, PathBelow

LICENCE = "AudioSet's tables are CC BY 4.0, (c) Google; the rights in the audio stay with the authors of the videos"

SetName = Literal["bal_train", "unbal_train", "eval"]
SET_NAMES: tuple[SetName, ...] = get_args(SetName)
_TABLES: dict[SetName, str] = {"bal_train": "balanced_train", "unbal_train": "unbalanced_train", "eval": "eval"}
_ROLES: dict[SetName, str] = {"bal_train": "train", "unbal_train": "train", "eval": "test"}

# Of a listing, with the set of each clip, and whether its audio was found.
_COLUMNS = pa.schema([*CLIP_COLUMNS, pa.field("set", pa.string()), pa.field("found", pa.bool_())])

Part = Annotated[float, Field(gt=0, lt=1)] | PositiveInt  # a share, or a number of clips


class Params(AdapterParams):
    kind: Literal["audioset"]
    tables: dict[SetName, PathBelow | None]  # of segments, below root, its `data`, or absolute; null = without this set
    class_table: FilePath  # index, mid, display_name
    missing: Literal["keep", "drop"]  # segments without audio: kept as missing, or left out of the manifest
    classes: list[str] | None  # names or ids of those that are kept, with their clips; null = all of the class table
    min_clips: NonNegativeInt  # classes with fewer clips with audio, for training or for test, are left out
    parts: dict[SetName, Part | None]  # share (below 1) or number of the set's clips; null or not named = all
    test_share: Annotated[
        float, Field(ge=0, lt=1)
    ]  # of the training sets' clips, tested where there is no evaluation set
    seed: NonNegativeInt  # of parts and test_share

    layout: ClassVar[str] = "<set>/*.parquet, <set>*.tar, or folders <set>/<first two letters>/<video>.flac"
    published_folds: ClassVar[tuple[str, ...]] = ("train", "test")

    @model_validator(mode="after")
    def _one_source_of_test_clips(self) -> "Params":
        if self.test_share and self.tables.get("eval") is not None:
            raise ValueError(
                f"expected test clips from one source, found test_share {self.test_share:g} and tables.eval "
                f"{self.tables['eval']}; set test_share to 0, or tables.eval to null"
            )
        return self

    def _choosing(self) -> dict[str, object]:
        """Return the settings that choose clips; those of a part only where there is one, so that all has one identity."""
        chosen = super()._choosing()
        parts = {name: part for name, part in self.parts.items() if part is not None}
        chosen["parts"] = parts
        for key, is_whole in {
            "classes": self.classes is None,
            "min_clips": not self.min_clips,
            "parts": not parts,
            "test_share": not self.test_share,
            "seed": not (parts or self.test_share),
        }.items():
            if is_whole:
                del chosen[key]
        return chosen


def recognise(contents: FolderContents) -> Recognised | None:
    """Return the layout of a folder with AudioSet's training sets; a set that is not here is left out."""
    found = [name for name in SET_NAMES if _is_here(contents, name)]
    if not {"bal_train", "unbal_train"} & set(found):
        return None
    settings: dict[str, Setting] = {}
    if "bal_train" not in found:
        settings["tables.bal_train"] = None
    if "unbal_train" in found:
        settings["tables.unbal_train"] = f"{_TABLES['unbal_train']}_segments.csv"
    if "eval" not in found:
        settings |= {"tables.eval": None, "test_share": 0.1}
    return Recognised("audioset", f"it has the sets {', '.join(found)} of AudioSet", settings)


def _is_here(contents: FolderContents, name: SetName) -> bool:
    """Return whether a set has a table, tars or Parquet files."""
    table = f"{_TABLES[name]}_segments.csv"
    return (
        contents.has(table)
        or contents.has(f"data/{table}")
        or any(
            path.suffix in (".tar", SUFFIX) and (path.name.startswith(name) or path.parent.name == name)
            for path in contents.others
        )
    )


def list_clips(params: Params) -> CorpusListing:
    """List the segments of the tables and the places of their audio; a video of two training sets is listed once."""
    class_table = params.class_table
    if not class_table.is_file():
        class_table = find_table(params.root, Path(class_table.name))
    mids, names = read_classes(class_table)
    left_out: Counter[str] = Counter()
    parts: list[pa.Table] = []
    seen: dict[str, pa.ChunkedArray] = {}  # role -> videos
    for name, role in _ROLES.items():
        path = params.tables.get(name)
        if path is None:
            continue
        segments = read_set(params.root, name, path)
        if role in seen:
            again = pc.is_in(segments["video"], seen[role])
            left_out["listed_again"] += pc.sum(again).as_py()
            segments = segments.filter(pc.invert(again))
        places, passed_over = place_segments(params.root, name, segments["video"])
        left_out.update(passed_over)
        seen[role] = segments["video"]
        parts.append(_as_clips(name, role, segments, places))
    clips = pa.concat_tables(parts or [_COLUMNS.empty_table()]).combine_chunks()
    labels = clips["labels"].combine_chunks()
    known = pa.array(names, pa.string()).take(pc.index_in(labels.flatten(), pa.array(mids, pa.string())))
    # An id that the class table lacks stays as it is: check_listing refuses unknown labels of all corpora.
    named = pa.ListArray.from_arrays(labels.offsets, pc.coalesce(known, labels.flatten()))
    clips = clips.set_column(clips.column_names.index("labels"), "labels", named)
    num_listed = len(clips)
    clips, classes = _choose(params, clips, mids, names)
    if len(clips) < num_listed:
        left_out["not_in_part"] = num_listed - len(clips)
    return CorpusListing(tuple(classes), "many", LICENCE, clips, params.missing, left_out, clips["set"])


def _choose(params: Params, clips: pa.Table, mids: list[str], names: list[str]) -> tuple[pa.Table, list[str]]:
    """Return the part of the clips that the params choose, and its classes in the order of the class table."""
    if params.classes is not None:
        clips, names = _of_classes(params, clips, mids, names)
    if any(part is not None for part in params.parts.values()):
        clips = clips.filter(pa.array(_drawn(params, clips)))
    if params.test_share:
        held_out = positions_of(clips["group"], params.seed, "test") < params.test_share
        folds = pc.if_else(pa.array(held_out), "test", clips["fold"])
        clips = clips.set_column(clips.column_names.index("fold"), "fold", folds)
    if params.min_clips and len(clips):
        there = _mask(clips["found"])
        roles = [_mask(pc.equal(clips["fold"], role)) & there for role in ("train", "test")]
        names = common_classes(clips, names, [role for role in roles if role.any()], params.min_clips)
        clips = with_classes(clips, names)
    return clips, names


def _of_classes(params: Params, clips: pa.Table, mids: list[str], names: list[str]) -> tuple[pa.Table, list[str]]:
    asked = set(params.classes or ())
    unknown = sorted(asked - set(mids) - set(names))
    reject(f"corpus.classes, where {params.class_table} names the classes", {"unknown classes": unknown})
    kept = [name for mid, name in zip(mids, names, strict=True) if mid in asked or name in asked]
    return with_classes(clips, kept), kept


def _drawn(params: Params, clips: pa.Table) -> np.ndarray:
    """Return the mask of the clips that `parts` draws, (clip,) bool."""
    positions, there = positions_of(clips["group"], params.seed, "part"), _mask(clips["found"])
    mask = np.ones(len(clips), dtype=bool)
    for name, part in params.parts.items():
        own = _mask(pc.equal(clips["set"], name))
        if part is not None and own.any():
            mask[own] = part_of(positions[own], there[own], part)
    return mask


def _mask(values: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(values.to_numpy(), dtype=bool)


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
