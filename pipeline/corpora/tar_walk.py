"""Iterate over an untrusted tar; every header is validated.

Yields members with the place of their bytes. Links, devices, sparse files and names that leave the folder are refused; an
invalid header ends the iteration, since nothing after it can be found. Only headers are read, data is skipped by seeking.
Formats: ustar, GNU and pax (POSIX.1-2001).

Conventions: offsets and sizes are in bytes; names have forward slashes and no leading `./`.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO

from pipeline.errors import CorpusError

_BLOCK = 512
_LONGEST_NOTE = 1 << 20  # bytes of a long name or of pax records; a real one takes a few hundred
_LONGEST_END = 1 << 20  # bytes of zeros that a tar ends in; programs fill up to 10 KiB
_FILES, _FOLDER, _WITHOUT_BYTES = b"0\0" + b"7", b"5", b"123456"
_PAX, _GNU_NAME = b"x", b"L"
_NOTES = _PAX + _GNU_NAME + b"gK"  # they describe the next member; g (all following members) and K (a link) are ignored
_A_FOLDER = "a folder"
_REFUSED = {
    b"1": "a hard link",
    b"2": "a link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"S": "a sparse file",
}
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}
LEAVES_FOLDER = re.compile(r"^/|^[A-Za-z]:|\\|(^|/)\.\.(/|$)")


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of a tar; `refused` is the reason why it may not be read, empty for a plain file."""

    name: str
    offset: int  # of its first byte
    size: int
    refused: str = ""


class _DamageError(Exception):
    """Damage that ends an iteration; caught within this module."""


class Walk:
    """Iterator over a tar's members; afterwards `damage` says where and why it ended early, or is empty.

    `heads` is a digest over all headers up to that of the member yielded last. Raises CorpusError where the file is not a
    tar.
    """

    def __init__(self, file: BinaryIO, path: object) -> None:
        self._file, self._path = file, path
        self._size = file.seek(0, 2)
        self._heads = self._marked = hashlib.sha256()
        self._names: set[str] = set()
        self._end = 0
        self.damage = ""

    @property
    def heads(self) -> str:
        return self._marked.hexdigest()[:32]

    def __iter__(self) -> Iterator[Member]:
        try:
            while (member := self._next()) is not None:
                if member.refused != _A_FOLDER:
                    self._marked = self._heads  # the next header goes into a copy
                    yield member
        except _DamageError as damage:
            self.damage = str(damage)

    def _next(self) -> Member | None:
        """Read one member's headers, its notes included, and step over its bytes."""
        notes: dict[str, str] = {}
        position, heads = self._end, self._heads.copy()
        while True:
            head = self._read(position, _BLOCK)
            if position == 0 and (len(head) < _BLOCK or not _is_header(head)):
                raise self._without_members(head)
            if len(head) < _BLOCK:
                raise _DamageError(f"expected more behind byte {position}, found the file's end: it was cut")
            if not any(head):
                self._check_end(position)
                return None
            kind, size = head[156:157], _number(head[124:136])
            if not _is_header(head) or size < 0:
                raise _DamageError(f"expected a header at byte {position}, found other bytes")
            heads.update(head)
            if kind not in _NOTES:
                break
            if size > _LONGEST_NOTE:
                raise _DamageError(f"expected a name at byte {position}, found {size} bytes of it")
            note = self._read(position + _BLOCK, size)
            heads.update(note)
            if kind == _GNU_NAME:
                notes["path"] = note.rstrip(b"\0").decode(errors="backslashreplace")
            elif kind == _PAX:
                notes |= _pax_records(note)
            position = _behind(position, size)
        if "size" in notes:
            size = int(notes["size"]) if re.fullmatch(r"[0-9]{1,18}", notes["size"]) else self._size
        size = 0 if kind in _WITHOUT_BYTES else size
        name, start = notes.get("path") or _name_in(head), position + _BLOCK
        if start + size > self._size:
            found = max(0, self._size - start)
            raise _DamageError(f"expected {size} bytes of {name} from byte {start}, found {found}: it was cut")
        self._end, self._heads = _behind(position, size), heads
        return self._judge(name, kind, notes, start, size)

    def _judge(self, name: str, kind: bytes, notes: dict[str, str], start: int, size: int) -> Member:
        refused = _why_refused(name, kind, notes)
        if not refused and (kind == _FOLDER or name.endswith("/")):  # the slash is how tar marked folders before 1988
            return Member(name, start, size, _A_FOLDER)
        if not refused:
            name = str(PurePosixPath(name))
            refused = "a name that came before" if name in self._names else ""
            self._names.add(name)
        return Member(name, start, size, refused)

    def _without_members(self, head: bytes) -> Exception:
        """Return the error for a file that begins with no header: damage where it holds zeros, else not a tar."""
        if any(head):
            return self._no_tar(head)
        return _DamageError(f"expected a tar file with members, found {self._size} bytes of which the first are zeros")

    def _check_end(self, position: int) -> None:
        """Check that only a limited number of zeros follow the block of zeros that ends a tar."""
        rest = self._read(position, _LONGEST_END + 1)
        if len(rest) > _LONGEST_END or any(rest):
            more = self._size - position
            raise _DamageError(f"expected the end at byte {position}, as zeros there say, found {more} bytes more")

    def _read(self, position: int, size: int) -> bytes:
        self._file.seek(position)
        return self._file.read(size)

    def _no_tar(self, head: bytes) -> CorpusError:
        found = next((f"{name}-compressed data" for magic, name in _COMPRESSED.items() if head.startswith(magic)), "")
        if head.startswith(b"version https://git-lfs"):
            found = "a Git LFS pointer; fetch the file itself with `git lfs pull`"
        return CorpusError(f"{self._path}: expected a tar file, uncompressed, found {found or 'something else'}")


def _behind(position: int, size: int) -> int:
    """Return the position of the next header: members are padded to whole blocks."""
    return position + _BLOCK + -(-size // _BLOCK) * _BLOCK


def _is_header(head: bytes) -> bool:
    """Return whether the block's checksum holds: the sum of its bytes, with the checksum's own eight as spaces."""
    expected = _number(head[148:156])
    return expected == sum(head) - sum(head[148:156]) + 8 * ord(" ")


def _number(field: bytes) -> int:
    """Return a number in octal, or in GNU's base 256 for what is too large; -1 where it is neither."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0")[0].strip()
    return int(digits, 8) if re.fullmatch(rb"[0-7]+", digits) else -1


def _name_in(head: bytes) -> str:
    name = head[:100].split(b"\0")[0]
    if head[257:263] == b"ustar\0":
        prefix = head[345:500].split(b"\0")[0]
        name = prefix + b"/" + name if prefix else name
    return name.decode(errors="backslashreplace")


def _pax_records(note: bytes) -> dict[str, str]:
    """Return the records `<length> <key>=<value>` of a pax header, a line each, up to the first that is malformed."""
    records = {}
    position = 0
    while match := re.compile(rb"(\d{1,9}) ([^=]+)=").match(note, position):
        end = position + int(match[1])
        if end <= match.end() or end > len(note):
            break
        records[match[2].decode(errors="backslashreplace")] = note[match.end() : end - 1].decode(
            errors="backslashreplace"
        )
        position = end
    return records


def _why_refused(name: str, kind: bytes, notes: dict[str, str]) -> str:
    if any(key.startswith("GNU.sparse") for key in notes):
        return "a sparse file"
    if kind not in _FILES and kind != _FOLDER:
        return _REFUSED.get(kind, f"of the unknown type {kind!r}")
    if not name or "\0" in name or LEAVES_FOLDER.search(name):
        return "an unsafe name"
    return ""
