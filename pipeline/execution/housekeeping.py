"""Housekeeping of the memo store: size, last use, damaged and leftover entries, and their removal."""

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.artifacts.files import PARTIAL_SUFFIX
from pipeline.execution.memo import About, Entry, damaged, read_entry

_LEFT_OVER = 3600.0  # seconds after which a temporary file counts as left by a killed run


@dataclass(frozen=True)
class Kept:
    """One entry of the memo, with the properties that decide whether it is kept."""

    entry: Entry
    stage: str
    used: float  # seconds since the epoch
    shared: bool  # an artifact or DVC's cache links to the same bytes: removing the entry frees nothing


@dataclass(frozen=True)
class Removal:
    """Entries and files that a clean-up removes."""

    entries: list[Kept]
    damaged: list[str]  # files that have changed since they were written
    partials: list[Path]  # of killed runs
    kept_bytes: int

    @property
    def freed_bytes(self) -> int:
        """Return the bytes freed: those without another hard link."""
        return sum(kept.entry.size for kept in self.entries if not kept.shared)


def entries(root: Path) -> Iterator[Kept]:
    """Yield every entry of the memo at `root`."""
    for path in root.glob("*/*/*/"):
        entry = read_entry(path) if path.name[0] != "." else None
        if entry:
            links = [(path / name).stat().st_nlink for name in entry.files if (path / name).exists()]
            yield Kept(entry, path.parts[-3], path.stat().st_mtime, max(links, default=1) > 1)


def versions(root: Path, stage: str) -> dict[str, About]:
    """Return version -> its params and code, for all versions of a stage in the memo."""
    found = {}
    for path in (root / stage).glob("*/about.json"):
        try:
            found[path.parent.name] = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
    return found


def plan_removal(root: Path, *, max_bytes: int | None, max_days: float | None, thorough: bool) -> Removal:
    """Choose the entries to remove: damaged (`thorough` reads all), too old, then least recently used above the bound."""
    wrong: list[str] = []
    remove: list[Kept] = []
    keep: list[Kept] = []
    for kept in entries(root):
        damage = damaged(kept.entry, thorough=thorough)
        if damage:
            wrong.append(str(kept.entry.path / damage))
        old = max_days is not None and time.time() - kept.used > max_days * 86400
        (remove if damage or old else keep).append(kept)
    keep.sort(key=lambda kept: kept.used)
    held = sum(kept.entry.size for kept in keep)
    while keep and max_bytes is not None and held > max_bytes:
        remove.append(keep.pop(0))
        held -= remove[-1].entry.size
    partials = [path for path in root.rglob(f".*{PARTIAL_SUFFIX}") if time.time() - path.stat().st_mtime > _LEFT_OVER]
    return Removal(remove, wrong, partials, held)


def remove(removal: Removal) -> None:
    """Carry out a removal. An entry is first renamed, so that a concurrent run never links part of one."""
    for kept in removal.entries:
        gone = kept.entry.path.with_name(f".{kept.entry.path.name}{PARTIAL_SUFFIX}")
        try:
            kept.entry.path.rename(gone)
        except OSError:  # another clean-up was faster
            continue
        shutil.rmtree(gone, ignore_errors=True)
    for path in removal.partials:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
