"""Hugging Face adapter: a dataset's Parquet files as the hub has them, read in place.

<root>/[data/]<split>-00000-of-00002.parquet      or <root>/**/<split>/0000.parquet, as the hub converts others
    one column of audio (struct of bytes and path), labels, and perhaps folds and groups

Names of classes stand in the files' metadata (`ClassLabel`). Splits are roles; where there is one split, folds are drawn.
"""

from collections import Counter
from typing import ClassVar, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifacts.clips import LabelKind
from pipeline.corpora.base import AdapterParams, ClipRow, CorpusListing, reject
from pipeline.corpora.huggingface_files import Shard, class_names, find_shards, is_shard, labels_of
from pipeline.corpora.layouts import FolderContents, Recognised, Setting
from pipeline.corpora.parquet_audio import ParquetIndex, index_parquet, read_columns
from pipeline.corpora.spelling import found_classes
from pipeline.corpora.table_columns import LABEL_NAMES
from pipeline.errors import CorpusError


class Params(AdapterParams):
    kind: Literal["huggingface"]
    labels_column: str
    label_kind: LabelKind
    fold_column: str | None  # null = the splits are the folds or roles
    group_column: str | None  # clips that must stay together; null = every clip by itself
    licence: str

    layout: ClassVar[str] = "Parquet files named <split>-00000-of-00001.parquet, here or in data/"


def recognise(contents: FolderContents) -> Recognised | None:
    """Return the layout of a folder with Parquet files that have a column of audio and one of labels."""
    shards = [contents.root / path for path in contents.others if is_shard(contents.root / path)]
    if not shards:
        return None
    try:
        schema = pq.read_schema(shards[0])
    except (pa.ArrowException, OSError):
        return None
    labels = [name for name in schema.names if class_names(shards[0], name)]
    labels += [name for name in LABEL_NAMES if name in schema.names and name not in labels]
    if not any(_is_audio(schema.field(name).type) for name in schema.names) or not labels:
        return None
    settings: dict[str, Setting] = {} if labels[0] == "label" else {"labels_column": labels[0]}
    if pa.types.is_list(schema.field(labels[0]).type):
        settings["label_kind"] = "many"
    return Recognised("huggingface", f"it has Parquet files with audio and a column `{labels[0]}`", settings)


def _is_audio(column: pa.DataType) -> bool:
    return pa.types.is_struct(column) and {"bytes", "path"} <= {field.name for field in column}


def list_clips(params: Params) -> CorpusListing:
    """List the rows of all files; a clip's id is its split and the name of its audio."""
    shards = find_shards(params.root)
    names = class_names(shards[0].path, params.labels_column)
    indexes = index_parquet([shard.path for shard in shards])
    rows = [row for shard, index in zip(shards, indexes, strict=True) for row in _rows(params, shard, index, names)]
    kept = [row for row in rows if row.labels or params.label_kind == "many"]
    left_out = Counter(without_bytes=sum(index.num_empty for index in indexes), unlabelled=len(rows) - len(kept))
    classes = tuple(names) if names else found_classes(row.labels for row in kept)
    return CorpusListing(classes, params.label_kind, params.licence, kept, left_out=left_out)


def _rows(params: Params, shard: Shard, index: ParquetIndex, names: list[str]) -> list[ClipRow]:
    """Return the clips of a file, in the order of its rows."""
    wanted = [params.labels_column, *filter(None, (params.fold_column, params.group_column))]
    columns = read_columns(shard.path, wanted)
    if missing := [name for name in wanted if name not in columns.column_names]:
        raise CorpusError(f"{shard.path}: expected the column `{missing[0]}`, found others; see to the section corpus")
    values = columns.take(index.rows["row"])
    cells = values[params.labels_column].to_pylist()
    labels = [labels_of(cell, names) for cell in cells]
    wrong = [str(cell) for cell, own in zip(cells, labels, strict=True) if own is None]
    reject(shard.path, {f"labels in {params.labels_column} that are no number of its {len(names)} classes": wrong})
    folds, groups = _texts(values, params.fold_column), _texts(values, params.group_column)
    return [
        ClipRow(
            clip_id := f"{shard.split}/{row['name']}" if shard.alone else f"{shard.split}/{shard.number}/{row['name']}",
            shard.path.relative_to(params.root).as_posix(),
            own or (),
            member=row["name"],
            offset=row["row"],
            size=row["size"],
            content=row["digest"],
            group=group or clip_id,
            fold=fold if params.fold_column else shard.fold,
        )
        for row, own, fold, group in zip(index.rows.to_pylist(), labels, folds, groups, strict=True)
    ]


def _texts(values: pa.Table, column: str | None) -> list[str]:
    if column is None:
        return [""] * len(values)
    return ["" if value is None else str(value) for value in values[column].to_pylist()]
