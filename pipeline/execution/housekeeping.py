"""Housekeeping of memo stores: size, last use, damaged and leftover entries, and their removal.

Beside the stores lies what killed runs leave in `.sonolex`, checkpoints, temporary files and marks for workers, and in DVC's
folder of workspaces: those in which `sonolex bundle --retrain` trains.
"""

import contextlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from pipeline.artifacts.files import PARTIAL_SUFFIX
from pipeline.execution.memo import ENTRY, About, Entry, FileRecord, damaged, discard, read_entry

MARK_SUFFIX = ".mark"  # of the files by which workers of a cluster are known to see the project
WORKSPACE_PREFIX = "sonolex-retrain-"  # of workspaces of `tools/retraining.py`
_CHECKPOINTS = "checkpoints"  # folder in `.sonolex`, of `pipeline/training/checkpoints.py`
_DAY = 86400.0  # seconds
_LEFT_OVER = 3600.0  # seconds after which a temporary file counts as left by a killed run


@dataclass(frozen=True)
class Kept:
    """One entry of the memo, with the properties that decide whether it is kept."""

    entry: Entry
    stage: str
    used: float  # seconds since the epoch
    shared: bool  # an artifact or DVC's cache links to the same bytes: removing the entry frees nothing
    described: bool = True  # False: its `entry.json` is damaged


class LeftOver(NamedTuple):
    """A file or folder that a killed run has left."""

    path: Path
    size: int  # bytes


@dataclass(frozen=True)
class Removal:
    """Entries and files that a clean-up removes."""

    entries: list[Kept]
    damaged: list[str]  # files that have changed since they were written
    left_over: list[LeftOver]
    kept_bytes: int

    @property
    def freed_bytes(self) -> int:
        """Return the bytes freed: those without another hard link."""
        entries = sum(kept.entry.size for kept in self.entries if not kept.shared)
        return entries + sum(left.size for left in self.left_over)


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


def plan_removal(
    *roots: Path,
    max_bytes: int | None,
    max_days: float | None,
    thorough: bool,
    state: Path | None = None,
    workspaces: Path | None = None,
) -> Removal:
    """Choose what to remove of the memos at `roots`, which are bounded together, and what runs have left beside them.

    That lies in `state`, the project's `.sonolex`, and in `workspaces`, DVC's folder of them.

    Entries go that are damaged (`thorough` reads all), then those that are too old, then the least recently used ones above
    the bound.
    """
    wrong: list[str] = []
    remove: list[Kept] = []
    keep: list[Kept] = []
    for kept in (kept for root in roots for kept in entries(root)):
        damage = damaged(kept.entry, thorough=thorough) if kept.described else ENTRY
        if damage:
            wrong.append(str(kept.entry.path / damage))
        old = max_days is not None and time.time() - kept.used > max_days * _DAY
        (remove if damage or old else keep).append(kept)
    keep.sort(key=lambda kept: kept.used)
    held = sum(kept.entry.size for kept in keep)
    while keep and max_bytes is not None and held > max_bytes:
        remove.append(keep.pop(0))
        held -= remove[-1].entry.size
    temporary = [path for root in roots for path in root.glob(f"*/*/.*{PARTIAL_SUFFIX}")]
    left_over = [*_older(temporary, _LEFT_OVER), *(_abandoned(state, max_days) if state else ())]
    if workspaces and max_days is not None:  # the folder's date is that of its start, and a retraining may take days
        left_over += _older(workspaces.glob(f"{WORKSPACE_PREFIX}*"), max_days * _DAY)
    return Removal(remove, wrong, left_over, held)


def _abandoned(state: Path, max_days: float | None) -> Iterator[LeftOver]:
    """Yield temporary files in the folder `state` and its folders, and with `max_days` what long runs may still need.

    These are checkpoints, with which a killed run goes on, and marks, which workers that join a run look for.
    """
    for pattern in (f".*{PARTIAL_SUFFIX}", f"*/.*{PARTIAL_SUFFIX}"):
        yield from _older(state.glob(pattern), _LEFT_OVER)
    if max_days is not None:
        for pattern in (f"{_CHECKPOINTS}/[!.]*", f"*{MARK_SUFFIX}"):
            yield from _older(state.glob(pattern), max_days * _DAY)


def _older(paths: Iterable[Path], seconds: float) -> Iterator[LeftOver]:
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # its run has just finished
            if time.time() - path.stat().st_mtime > seconds:
                files = path.rglob("*") if path.is_dir() else [path]
                yield LeftOver(path, sum(file.lstat().st_size for file in files if file.is_file()))


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
    for path, _ in removal.left_over:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    stay = sum(kept.entry.size for kept in removal.entries) - sum(kept.entry.size for kept in removed)
    return replace(removal, entries=removed, kept_bytes=removal.kept_bytes + stay)
