"""Content-addressed cache of finished shards, kept outside the artifacts.

    <memo>/<stage>/<version>/about.json          the stage, its params and the code behind the version
    <memo>/<stage>/<version>/<shard>/entry.json  the shard's files with their digests, its number of clips, and its time
    <memo>/<stage>/<version>/<shard>/...         the files

A version identifies params and code, a shard's name identifies its clips. A cached shard is therefore valid after a killed
run, for a setting that was changed and restored, and in another experiment. Artifacts are made of hard links to these files,
which are therefore read-only and never written in place; where hard links are impossible, of copies.

An entry appears in one step, by rename. Deleting entries costs only time.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from pipeline.artifacts.files import partial_name, replacing
from pipeline.errors import SonolexError

log = logging.getLogger(__name__)

_ABOUT, _ENTRY = "about.json", "entry.json"


class FileRecord(TypedDict):
    """A file of an entry as it was written."""

    size: int  # bytes
    mtime_ns: int
    sha256: str


class About(TypedDict):
    """Description of a version, from which its name is hashed."""

    stage: str
    params: Mapping[str, object]  # plain values
    code: str  # version


@dataclass(frozen=True)
class Entry:
    """One finished shard."""

    path: Path
    files: dict[str, FileRecord]  # by path below the entry
    clips: int
    computed: int  # clips that were computed, not copied from another entry
    seconds: float  # that it took

    @property
    def size(self) -> int:
        """Return the bytes of its files."""
        return sum(file["size"] for file in self.files.values())


class Memo:
    """The shards of one version of one stage."""

    def __init__(self, root: Path, stage: str, *, params: Mapping[str, object], code: str) -> None:
        """Open the version of `params` (plain values) and `code`; nothing is written before the first entry."""
        self.about: About = {"stage": stage, "params": params, "code": code}
        self.version = hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()[:16]
        self.path = root / stage / self.version

    def names(self) -> set[str]:
        """Return the names of the finished shards."""
        try:
            return {entry.name for entry in os.scandir(self.path) if entry.is_dir() and entry.name[0] != "."}
        except FileNotFoundError:
            return set()

    def find(self, name: str) -> Entry | None:
        """Return a finished shard, or None; an entry whose files have changed is removed."""
        entry = read_entry(self.path / name)
        if entry is None:
            return None
        damage = damaged(entry)
        if damage:
            log.warning("%s: expected %s as it was written, found it changed; computing it again", entry.path, damage)
            self.forget(name)
            return None
        return entry

    def require(self, name: str) -> Entry:
        """Return a shard that a worker has finished. Raises SonolexError where this process does not see it."""
        entry = read_entry(self.path / name)
        if entry is None:
            raise SonolexError(
                f"{self.path / name}: expected the shard that a worker wrote, found none; workers on other machines need "
                f"`execution.memo` on a file system that all share"
            )
        return entry

    def forget(self, name: str) -> None:
        """Remove an entry, if it exists."""
        shutil.rmtree(self.path / name, ignore_errors=True)

    @contextlib.contextmanager
    def writing(self, name: str, *, clips: int, computed: int) -> Iterator[Path]:
        """Yield a folder for the files of a shard; it becomes the entry `name` when the block ends without an error."""
        started = time.perf_counter()
        if not (self.path / _ABOUT).exists():
            with replacing(self.path / _ABOUT) as partial:
                partial.write_text(json.dumps(self.about, indent=1, sort_keys=True) + "\n")
        partial = partial_name(self.path / name)
        try:
            partial.mkdir()
            yield partial
            entry: dict[str, object] = {"clips": clips, "computed": computed, "files": _note_files(partial)}
            entry["seconds"] = round(time.perf_counter() - started, 4)
            (partial / _ENTRY).write_text(json.dumps(entry) + "\n")
            _settle(partial, self.path / name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def mark_used(self, names: Iterable[str]) -> None:
        """Record that these shards were used now; the least recently used are removed first when space is short."""
        for name in names:
            with contextlib.suppress(OSError):
                os.utime(self.path / name)


def read_entry(path: Path) -> Entry | None:
    """Read the description of an entry; None where there is no complete one."""
    try:
        found = json.loads((path / _ENTRY).read_text())
        return Entry(path, found["files"], found["clips"], found["computed"], found["seconds"])
    except (OSError, ValueError, KeyError):
        return None


def damaged(entry: Entry, *, thorough: bool = False) -> str:
    """Return the name of a file that has changed since it was written, or "".

    A file with the recorded size and time counts as unchanged; `thorough` checks its digest too.
    """
    for name, noted in entry.files.items():
        path = entry.path / name
        try:
            status = path.stat()
        except OSError:
            return name
        same = (status.st_size, status.st_mtime_ns) == (noted["size"], noted["mtime_ns"])
        if (thorough or not same) and (status.st_size != noted["size"] or _sha256(path) != noted["sha256"]):
            return name
    return ""


def link_tree(source: Path, target: Path) -> None:
    """Make `target` a folder with the files of `source`: hard links, or copies where the file system has none."""
    for file in source.rglob("*"):
        if file.is_file():
            place = target / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file, place)
            except OSError:
                shutil.copyfile(file, place)


def _note_files(folder: Path) -> dict[str, FileRecord]:
    """Make the files of a new entry read-only, and return their sizes, times and digests."""
    files = {}
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        file.chmod(0o444)
        status = file.stat()
        files[str(file.relative_to(folder))] = FileRecord(
            size=status.st_size, mtime_ns=status.st_mtime_ns, sha256=_sha256(file)
        )
    return files


def _settle(partial: Path, target: Path) -> None:
    """Rename a new entry to its final name; an entry that another run has just finished is equal, and is kept."""
    try:
        partial.rename(target)
    except OSError:
        if read_entry(target) is None:
            raise


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
