"""AudioSet adapter: 10 s segments of videos with any number of 527 labels, in published sets (Gemmeke et al., 2017).

<root>     Parquet files, tars or folders of FLAC files, see pipeline/corpora/audioset_files.py
tables     <set>_segments.csv as published: `YTID, start_seconds, end_seconds, "labels"`

The id of a clip is <set>/<video>; its group is the video. A part of AudioSet is chosen by classes, and by a share or number
of each set's clips; without the evaluation set, test clips can be drawn from the training sets: audioset_parts.py.
"""

from pathlib import Path
from typing import ClassVar, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import model_validator

from pipeline.corpora.audioset_files import SET_NAMES, SetName, find_table, read_classes, read_sets
from pipeline.corpora.audioset_parts import PartParams, choose_part
from pipeline.corpora.base import CorpusListing
from pipeline.corpora.layouts import FolderContents, Recognised, Setting
from pipeline.corpora.parquet_audio import SUFFIX
from pipeline.params import PathBelow

LICENCE = "AudioSet's tables are CC BY 4.0, (c) Google; the rights in the audio stay with the authors of the videos"

_TABLES: dict[SetName, str] = {"bal_train": "balanced_train", "unbal_train": "unbalanced_train", "eval": "eval"}


class Params(PartParams):
    kind: Literal["audioset"]
    tables: dict[SetName, PathBelow | None]  # of segments, below root, its `data`, or absolute; null = without this set
    missing: Literal["keep", "drop"]  # segments without audio: kept as missing, or left out of the manifest

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
    clips, left_out = read_sets(params.root, params.tables)
    labels = clips["labels"].combine_chunks()
    known = pa.array(names, pa.string()).take(pc.index_in(labels.flatten(), pa.array(mids, pa.string())))
    # An id that the class table lacks stays as it is: check_listing refuses unknown labels of all corpora.
    named = pa.ListArray.from_arrays(labels.offsets, pc.coalesce(known, labels.flatten()))
    clips = clips.set_column(clips.column_names.index("labels"), "labels", named)
    num_listed = len(clips)
    clips, classes = choose_part(params, clips, mids, names)
    if len(clips) < num_listed:
        left_out["not_in_part"] = num_listed - len(clips)
    ids = dict(zip(names, mids, strict=True))
    kept = tuple(ids[name] for name in classes)
    return CorpusListing(tuple(classes), "many", LICENCE, clips, params.missing, left_out, clips["set"], kept)
