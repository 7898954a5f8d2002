"""Files of Hugging Face datasets: Parquet shards by split, and names of classes in the metadata of a file.

Shards are named <split>-<number>-of-<count>.parquet, with a fingerprint at the end in older sets, or <number>.parquet in a
folder of the split's name.
"""

import json
import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import CorpusError

log = logging.getLogger(__name__)

_SHARD = re.compile(r"(?P<split>[\w.]+)-(?P<number>\d{5})-of-(?P<count>\d{5})(-[0-9a-f]+)?\.parquet")
_NUMBER = re.compile(r"(?P<number>\d+)\.parquet")


@dataclass(frozen=True)
class Shard:
    """One Parquet file of a split."""

    path: Path
    split: str
    number: int
    count: int  # shards of the split, by its own name; 0 = not said
    fold: str = ""  # published role or fold of its clips: the split, or nothing where there is but one split
    alone: bool = True  # the only one of its split


def find_shards(root: Path) -> list[Shard]:
    """Return the shards below a folder, by split and number. Raises CorpusError where there is none.

    Shards that are missing by the names of the others are warned of.
    """
    splits: dict[str, list[Shard]] = defaultdict(list)
    for path in _parquet_files(root):
        shard = _shard(path)
        if shard is not None:
            splits[shard.split].append(shard)
    if not splits:
        raise CorpusError(
            f"{root}: expected Parquet files named <split>-00000-of-00001.parquet, here or in data/, found none; fetch "
            f"those of one configuration, as `hf download --repo-type dataset NAME --local-dir FOLDER` does"
        )
    for split, shards in splits.items():
        if len(shards) < shards[0].count:
            log.warning("%s: found %d of %d files of %s; fetch the others", root, len(shards), shards[0].count, split)
    return [
        replace(shard, fold=split if len(splits) > 1 else "", alone=len(shards) == 1)
        for split, shards in sorted(splits.items())
        for shard in sorted(shards, key=lambda shard: shard.number)
    ]


def is_shard(path: Path) -> bool:
    """Return whether a file is a shard by its name."""
    return _shard(path) is not None


def class_names(path: Path, column: str) -> list[str]:
    """Return the names of the classes of a column of numbers; an empty list where its values are the names themselves."""
    try:
        metadata = pq.read_schema(path).metadata or {}
        feature = json.loads(metadata[b"huggingface"])["info"]["features"][column]
    except (KeyError, ValueError, TypeError):
        return []
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(f"{path}: expected a Parquet file that can be read, found {error}; fetch it again") from None
    while isinstance(feature, list) or (isinstance(feature, dict) and "feature" in feature):
        feature = feature[0] if isinstance(feature, list) else feature["feature"]  # a list of labels
    names = feature.get("names") if isinstance(feature, dict) else None
    return [str(name) for name in names] if isinstance(names, list) else []


def _parquet_files(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(files) if name.endswith(".parquet"))


def _shard(path: Path) -> Shard | None:
    if match := _SHARD.fullmatch(path.name):
        return Shard(path, match["split"], int(match["number"]), int(match["count"]))
    match = _NUMBER.fullmatch(path.name)
    return Shard(path, path.parent.name, int(match["number"]), 0) if match else None
