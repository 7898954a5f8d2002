"""Unpacking of untrusted tars and zips: plain files below one folder, up to a number of bytes.

Links, devices, pipes and names that lead out of the folder are refused by name and never written; the other members are. The
size is counted while files are written, whatever the headers say.
"""

import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from pipeline.corpora.tar_walk import LEAVES_FOLDER
from pipeline.errors import SonolexError
from tools.byte_progress import ByteCounter, spell_size
from tools.fetching.split_zip import open_zip
from tools.fetching.storage import naming

_PIECE = 1 << 20  # bytes copied at a time
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    RuntimeError,
)


@dataclass(frozen=True, slots=True)
class _Member:
    """A plain file of an archive, or something else that is refused. Folders are made for the files in them."""

    name: str
    open: Callable[[], IO[bytes] | None]
    refused: str = ""


@dataclass
class Unpacked:
    """What has been written to a folder, from one archive or several."""

    folder: Path
    limit: int  # of `size`
    files: int = 0
    size: int = 0  # bytes
    refused: list[str] = field(default_factory=list)  # names, each with the reason


def unpack(parts: Sequence[Path], strip: str | None, unpacked: Unpacked, counter: ByteCounter) -> None:
    """Unpack a tar, a zip, or the parts of a split zip, without the top folder `strip`.

    Raises SonolexError for a damaged archive, for more than `unpacked.limit` bytes, and where they do not fit the disk.
    """
    try:
        with _open(parts, unpacked, counter) as members:
            for member in members:
                _write(member, strip, unpacked, counter)
    except _DAMAGE as error:
        names = ", ".join(map(str, parts))
        raise SonolexError(
            f"{parts[-1]}: expected an archive that can be read, found {error}; remove {names}, then run the same command "
            "again, which downloads anew"
        ) from None


@contextmanager
def _open(parts: Sequence[Path], unpacked: Unpacked, counter: ByteCounter) -> Iterator[Iterator[_Member]]:
    """Open an archive and yield its members but for folders."""
    if parts[-1].suffix.lower() == ".zip":
        with open_zip(parts) as zipped:
            size = sum(info.file_size for info in zipped.infolist())
            _require_room(parts[-1], unpacked, size)
            counter.start(0, size)
            yield (_zip_member(zipped, info) for info in zipped.infolist() if not info.is_dir())
    else:
        with tarfile.open(parts[0], "r|*") as tar:
            yield (_tar_member(tar, info) for info in tar if not info.isdir())


def _zip_member(zipped: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    kind = stat.S_IFMT(info.external_attr >> 16)  # 0 from systems that have no kinds
    return _Member(info.filename, lambda: zipped.open(info), "" if kind in (0, stat.S_IFREG) else "a link or a device")


def _tar_member(tar: tarfile.TarFile, info: tarfile.TarInfo) -> _Member:
    return _Member(info.name, lambda: tar.extractfile(info), "" if info.isreg() else "a link or a device")


def _write(member: _Member, strip: str | None, unpacked: Unpacked, counter: ByteCounter) -> None:
    """Write one file, or note why it is refused."""
    names = PurePosixPath(member.name).parts
    names = names[1:] if strip is not None and names[:1] == (strip,) else names
    unsafe = not names or "\0" in member.name or LEAVES_FOLDER.search(member.name)
    refused = "a name that leads out of the folder" if unsafe else member.refused
    target = unpacked.folder.joinpath(*names)
    if not refused:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _copy(member, target, unpacked, counter)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            refused = "both a file and a folder"
    if refused:
        unpacked.refused.append(f"{member.name!r} ({refused})")


def _copy(member: _Member, target: Path, unpacked: Unpacked, counter: ByteCounter) -> None:
    source = member.open()
    if source is None:  # tarfile's way to say that a member has no bytes of its own
        raise tarfile.ReadError(f"{member.name!r} without bytes")
    with source, naming(target), target.open("wb") as file:
        unpacked.files += 1
        while piece := source.read(_PIECE):
            unpacked.size += len(piece)
            if unpacked.size > unpacked.limit:
                raise SonolexError(_too_large(member.name, unpacked))
            file.write(piece)
            counter.advance(len(piece))


def _require_room(path: Path, unpacked: Unpacked, size: int) -> None:
    """Raise SonolexError unless `size` further bytes are within the limit, and fit the disk."""
    if unpacked.size + size > unpacked.limit:
        raise SonolexError(_too_large(str(path), unpacked))
    free = shutil.disk_usage(unpacked.folder).free
    if size > free:
        raise SonolexError(
            f"{unpacked.folder}: expected {spell_size(size)} free to unpack {path.name}, found {spell_size(free)}; make "
            "room, then run the same command again: the archives are kept"
        )


def _too_large(name: str, unpacked: Unpacked) -> str:
    return (
        f"{name}: expected at most {unpacked.limit:,} bytes of unpacked files, found more; if the corpus really has them, "
        "raise max_unpacked in the catalogue"
    )
