"""Content-addressed cache of finished shards, kept outside the artifacts.

    <memo>/<stage>/<version>/about.json          the stage, its params and the code behind the version
    <memo>/<stage>/<version>/<shard>/entry.json  the shard's files with their digests, its number of clips, and its time
    <memo>/<stage>/<version>/<shard>/...         the files

A version identifies params and code, a shard's name identifies its clips. A cached shard is therefore valid after a killed
run, for a setting that was changed and restored, and in another experiment. Artifacts are made of hard links to these files,
which are therefore read-only and never written in place; where hard links are impossible, of copies.

An entry appears and goes in one step, by rename. Deleting entries costs only time.

Every file of an entry is checked. `entry.json` holds a digest of itself. Whenever an entry is looked up, its files up to
1 MiB (tables, metadata of arrays) are compared with their digests, and larger ones (chunks of arrays) with their size and
time, or with their digests too by a stage that makes an artifact of them. A damaged entry is removed, and computed again by
the stage that meets it. A file that cannot be read (no permission, failing disk) says nothing about the entry: the OSError
is raised, and nothing is removed.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TypedDict, TypeVar

from pipeline.artifacts.files import partial_name, replacing
from pipeline.errors import SonolexError

log = logging.getLogger(__name__)

R = TypeVar("R")

_ABOUT, ENTRY = "about.json", "entry.json"
_DIGEST = "digest"  # key of entry.json: digest of its other keys

_SMALL = 1 << 20  # bytes up to which a file is compared with its digest at every look-up
_THREADS = 4  # look-ups wait for the disk more than for the processor
_ATTEMPTS = 5  # of a stage whose entries are lost while it runs


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


class LostEntry(Exception):  # noqa: N818 - not a fault: the entry is computed again
    """An entry that was there when it was looked up, and is damaged or gone when it is read; nothing is left of it."""

    def __init__(self, path: Path, file: str, found: str) -> None:
        self.path, self.file, self.found = path, file, found
        super().__init__(path, file, found)

    def __str__(self) -> str:
        return f"{self.path}: expected {self.file} as it was written, found it {self.found}"


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

    def read(self, name: str) -> bytes:
        """Return the content of a file, checked against its digest. Raises LostEntry."""
        try:
            content = (self.path / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise self.lost(name, "missing") from None
        if hashlib.sha256(content).hexdigest() != self.files[name]["sha256"]:
            raise self.lost(name, "changed")
        return content

    def link(self, folder: str, target: Path) -> None:
        """Make `target` a folder with the files below `folder`: hard links, or copies where the file system has none.

        Copies are compared with their digests. Raises LostEntry.
        """
        for name in self.files:
            path = PurePath(name)
            if path.is_relative_to(folder):
                self._link(name, target / path.relative_to(folder))

    def _link(self, name: str, place: Path) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(self.path / name, place)
        except FileNotFoundError:
            raise self.lost(name, "missing") from None
        except OSError:
            self._copy(name, place)

    def _copy(self, name: str, place: Path) -> None:
        try:
            shutil.copyfile(self.path / name, place)
        except FileNotFoundError:
            raise self.lost(name, "missing") from None
        if _sha256(place) != self.files[name]["sha256"]:
            raise self.lost(name, "changed")

    def lost(self, file: str, found: str) -> LostEntry:
        """Remove the entry, in which `file` is damaged or missing, and return the exception that says so."""
        discard(self.path)
        return LostEntry(self.path, file, found)


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

    def find_all(self, names: Iterable[str], *, thorough: bool = False) -> dict[str, Entry]:
        """Return the finished shards among `names`, several looked up at a time; see `find`."""
        names = list(names)
        with ThreadPoolExecutor(_THREADS) as pool:
            found = pool.map(lambda name: self.find(name, thorough=thorough), names)
            return {name: entry for name, entry in zip(names, found, strict=True) if entry is not None}

    def find(self, name: str, *, thorough: bool = False) -> Entry | None:
        """Return a finished shard, or None; a damaged entry is removed, with a warning.

        `thorough` reads files of any size. Raises OSError where files of the entry are there and cannot be read.
        """
        path = self.path / name
        entry = read_entry(path)
        if entry is None and not path.exists():
            return None
        damage = damaged(entry, thorough=thorough) if entry else ENTRY
        if damage:
            log.warning("%s: expected %s as it was written, found it changed; computing it again", path, damage)
            self.forget(name)
            return None
        return entry

    def require(self, name: str) -> Entry:
        """Return a shard that a worker has finished. Raises SonolexError where this process does not see it."""
        entry = read_entry(self.path / name)
        if entry is None:
            raise SonolexError(
                f"{self.path / name}: expected the shard that a worker wrote, found none; workers on other machines need "
                f"`execution.memo` on a file system that all share. If `sonolex gc` removed it meanwhile, run again with a "
                f"larger --max-size"
            )
        return entry

    def holds(self, name: str) -> bool:
        """Return whether an entry is there; all of its files were until now, since it goes in one step."""
        return (self.path / name / ENTRY).exists()

    def forget(self, name: str) -> None:
        """Remove an entry, if it exists."""
        discard(self.path / name)

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
            (partial / ENTRY).write_text(json.dumps(entry | {_DIGEST: _digest(entry)}) + "\n")
            _settle(partial, self.path / name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def mark_used(self, names: Iterable[str]) -> None:
        """Record that these shards, as far as they are there, are used now; call it before they are looked up.

        The least recently used entries are removed first when space is short.
        """
        for name in names:
            with contextlib.suppress(OSError):
                os.utime(self.path / name)


def retry_lost(work: Callable[[], R]) -> R:
    """Return `work()`; where it meets an entry that is damaged or gone, call it again, to compute the entry anew.

    Raises SonolexError where entries are lost again and again.
    """
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return work()
        except LostEntry as lost:
            if attempt == _ATTEMPTS:
                raise SonolexError(
                    f"{lost}, the last of {_ATTEMPTS} entries lost in one run; raise --max-size of a `sonolex gc` that runs "
                    f"beside it, or check the disk of `execution.memo`"
                ) from None
            log.warning("%s; computing it again", lost)
    raise AssertionError


def read_entry(path: Path) -> Entry | None:
    """Read the description of an entry; None where there is none as it was written.

    Raises OSError where it is there and cannot be read.
    """
    try:
        found = json.loads((path / ENTRY).read_bytes())
        if found.pop(_DIGEST) != _digest(found):
            return None
        return Entry(path, found["files"], found["clips"], found["computed"], found["seconds"])
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, AttributeError, TypeError):
        return None


def damaged(entry: Entry, *, thorough: bool = False) -> str:
    """Return the name of a file that has changed since it was written, or "".

    Files above 1 MiB with the recorded size and time count as unchanged; `thorough` checks their digests too. Raises OSError
    where a file is there and cannot be read.
    """
    for name, noted in entry.files.items():
        path = entry.path / name
        try:
            status = path.stat()
            if status.st_size != noted["size"]:
                return name
            trusted = status.st_mtime_ns == noted["mtime_ns"] and noted["size"] > _SMALL and not thorough
            if not trusted and _sha256(path) != noted["sha256"]:
                return name
        except (FileNotFoundError, NotADirectoryError):
            return name
    return ""


def discard(path: Path) -> None:
    """Remove an entry, if it exists, in one step: it is renamed first, so that no reader sees a part of it."""
    gone = partial_name(path)
    with contextlib.suppress(FileNotFoundError):  # another process was faster
        path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


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
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            partial.rename(target)
        except OSError as error:
            if read_entry(target) is not None:
                return
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or attempt == _ATTEMPTS:
                raise
            discard(target)  # a damaged one
        else:
            return


def _digest(entry: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
