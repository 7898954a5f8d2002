"""Spelling of names: labels, groups and folds in one form, folds as paths can hold them, and files as the disk has them.

One text can be several sequences of characters: macOS stores `é` as two (Unicode's form NFD), tables mostly hold one (NFC).
Names are compared in NFC, and without the spaces around them. A clip's `source` alone keeps the spelling of the disk.

A fold becomes part of paths and commands. In a fold that is no safe name (`pipeline.params.SAFE_NAME`) every character that
is not allowed becomes `_`, and so does a leading `-`; what is longer than 64 characters is cut. Where that would give two
folds one name, the renamed ones end in `_` and eight digits of the SHA-256 of their own name.
"""

import hashlib
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.corpora.base import CorpusListing
from pipeline.params import is_safe_name

log = logging.getLogger(__name__)

_LONGEST = 64  # characters of a safe name
_DIGITS = 8  # of the digest that tells two folds apart


def tidy(name: str) -> str:
    """Return a label, group or fold in NFC and without the spaces around it."""
    return unicodedata.normalize("NFC", name.strip())


def found_classes(labels: Iterable[Iterable[str]]) -> tuple[str, ...]:
    """Return the distinct labels of clips, sorted."""
    return tuple(sorted({tidy(label) for own in labels for label in own}))


def tidied(listing: CorpusListing, root: Path) -> CorpusListing:
    """Return a listing with its names in one form, its folds as safe names, and its sources as the disk spells them."""
    clips = listing.table().combine_chunks()
    columns = {name: _tidy_column(clips[name]) for name in ("group", "fold")}
    columns |= {name: _tidy_lists(clips[name]) for name in ("labels", "unknown")}
    columns["fold"] = _safe_folds(columns["fold"])
    columns["clip_id"] = _in_nfc(clips["clip_id"])
    columns["source"] = _on_disk(clips["source"], root)
    for name, values in columns.items():
        clips = clips.set_column(clips.column_names.index(name), clips.schema.field(name), values)
    return replace(listing, classes=tuple(map(tidy, listing.classes)), clips=clips)


def safe_folds(names: Iterable[str]) -> dict[str, str]:
    """Return the safe name of every fold, no two alike; a safe name stays as it is."""
    own = {name: name if not name or is_safe_name(name) else _safe(name) for name in names}
    times = Counter(own.values())
    return {
        name: safe if safe == name or times[safe] == 1 else f"{safe[: _LONGEST - _DIGITS - 1]}_{_digest(name)}"
        for name, safe in own.items()
    }


def spelled_on_disk(root: Path, source: str) -> str:
    """Return a path below the root as the disk spells it, or as it is where there is no such file."""
    if (root / source).exists():
        return source
    found: list[str] = []
    for part in source.split("/"):
        try:
            names = os.listdir(root.joinpath(*found))  # noqa: PTH208
        except OSError:
            return source
        match = next((name for name in sorted(names) if tidy(name) == tidy(part)), None)
        if match is None:
            return source
        found.append(match)
    return "/".join(found)


def _safe(name: str) -> str:
    return re.sub(r"^-|[^A-Za-z0-9_-]", "_", name)[:_LONGEST]


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:_DIGITS]


def _safe_folds(folds: pa.ChunkedArray) -> pa.ChunkedArray:
    names = pc.unique(folds)
    safe = safe_folds(names.to_pylist())
    renamed = [f"{name!r} is {safe[name]}" for name in sorted(safe) if safe[name] != name]
    if not renamed:
        return folds
    log.warning("folds whose names paths cannot hold are renamed: %s", ", ".join(renamed))
    return pa.array([safe[name] for name in names.to_pylist()], pa.string()).take(pc.index_in(folds, names))


def _in_nfc(texts: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    if pc.all(pc.string_is_ascii(texts)).as_py() is not False:
        return texts
    return pc.utf8_normalize(texts, form="NFC")


def _tidy_column(texts: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    return _in_nfc(pc.utf8_trim_whitespace(texts))


def _tidy_lists(lists: pa.ChunkedArray) -> pa.ListArray:
    combined = lists.combine_chunks()
    return pa.ListArray.from_arrays(_ends(combined), _tidy_column(combined.flatten()))


def _ends(lists: pa.ListArray) -> pa.Array:
    """Return the offsets of lists whose values start at 0, as `flatten` returns them."""
    return pc.subtract(lists.offsets, lists.offsets[0])


def _on_disk(sources: pa.ChunkedArray, root: Path) -> pa.Array | pa.ChunkedArray:
    """Return sources with those that are not ASCII spelled as the disk has them."""
    ascii_only = pc.string_is_ascii(sources)
    if pc.all(ascii_only).as_py() is not False:
        return sources
    names = pc.unique(sources.filter(pc.invert(ascii_only)))
    spelled = pa.array([spelled_on_disk(root, name) for name in names.to_pylist()], pa.string())
    return pc.coalesce(spelled.take(pc.index_in(sources, names)), sources)
