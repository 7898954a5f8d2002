"""Housekeeping of the memo store: size, last use, damaged and leftover entries, and their removal."""

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.artifacts.files import PARTIAL_SUFFIX
from pipeline.execution.memo import ENTRY, About, Entry, FileRecord, damaged, discard, read_entry

_LEFT_OVER = 3600.0  # seconds after which a temporary file counts as left by a killed run


@dataclass(frozen=True)
class Kept:
    """One entry of the memo, with the properties that decide whether it is kept."""

    entry: Entry
    stage: str
    used: float  # seconds since the epoch
    shared: bool  # an artifact or DVC's cache links to the same bytes: removing the entry frees nothing
    described: bool = True  # False: its `entry.json` is damaged


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
    """Yield every entry of the memo at `root`, also one whose description is damaged."""
    for path in root.glob("*/*/*/"):
        with contextlib.suppress(FileNotFoundError):  # a run has just removed it
            if path.name[0] != ".":
                yield _kept(path)


def _kept(path: Path) -> Kept:
    found = read_entry(path)
    entry = found or Entry(path, _files_of(path), clips=0, computed=0, seconds=0.0)
    links = [(path / name).stat().st_nlink for name in entry.files if (path / name).exists()]
    return Kept(entry, path.parts[-3], path.stat().st_mtime, max(links, default=1) > 1, described=found is not None)


def _files_of(path: Path) -> dict[str, FileRecord]:
    """Return the files of an entry that does not describe them itself, without digests."""
    files = [(file, file.stat()) for file in path.rglob("*") if file.is_file() and file.name != ENTRY]
    return {
        str(file.relative_to(path)): FileRecord(size=status.st_size, mtime_ns=status.st_mtime_ns, sha256="")
        for file, status in files
    }


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
        damage = damaged(kept.entry, thorough=thorough) if kept.described else ENTRY
        if damage:
            wrong.append(str(kept.entry.path / damage))
        old = max_days is not None and time.time() - kept.used > max_days * 86400
        (remove if damage or old else keep).append(kept)
    keep.sort(key=lambda kept: kept.used)
    held = sum(kept.entry.size for kept in keep)
    while keep and max_bytes is not None and held > max_bytes:
        remove.append(keep.pop(0))
        held -= remove[-1].entry.size
    return Removal(remove, wrong, list(_left_over(root)), held)


def _left_over(root: Path) -> Iterator[Path]:
    for path in root.glob(f"*/*/.*{PARTIAL_SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):  # its run has just finished
            if time.time() - path.stat().st_mtime > _LEFT_OVER:
                yield path


def remove(removal: Removal) -> Removal:
    """Carry out a removal; return it with the entries that were removed.

    An entry that a run has marked as used since the removal was planned stays.
    """
    removed = []
    for kept in removal.entries:
        with contextlib.suppress(FileNotFoundError):  # another clean-up, or a run, was faster
            if kept.entry.path.stat().st_mtime == kept.used:
                discard(kept.entry.path)
                removed.append(kept)
    for path in removal.partials:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    stay = sum(kept.entry.size for kept in removal.entries) - sum(kept.entry.size for kept in removed)
    return replace(removal, entries=removed, kept_bytes=removal.kept_bytes + stay)
