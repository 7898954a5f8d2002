"""Reading of split zips (`.z01`, `.z02`, ..., `.zip`) in place, as `zipfile` reads whole ones.

In a split zip the place of a member is the number of its part and an offset in that part, which `zipfile` cannot read.
`open_zip` shows it the parts one after the other, and after them a directory whose offsets count from the first byte. The
layout is that of PKWARE's APPNOTE.TXT, 4.3.12 to 4.3.16 and 8.5.

Conventions: offsets and sizes are in bytes; integers are little-endian.
"""

import bisect
import io
import itertools
import os
import struct
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, cast

_END = struct.Struct(
    "<4s4H2LH"
)  # signature, part, directory's part, entries here, in all, directory's size, offset, comment
_END64 = struct.Struct("<4sQ2H2L4Q")  # signature, size, two versions, then as above from `part` on
_LOCATOR = struct.Struct("<4sLQL")  # signature, part of the end64, its offset, number of parts
_ENTRY = struct.Struct("<4s6H3L5H2L")  # of the directory; see _COMPRESSED to _OFFSET
_COMPRESSED, _SIZE, _NAME, _EXTRA, _COMMENT, _PART, _OFFSET = 8, 9, 10, 11, 12, 13, 16
_EXTRA64 = 1  # id of the extra field with the 64-bit values of fields that are full
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF


@contextmanager
def open_zip(parts: Sequence[Path]) -> Iterator[zipfile.ZipFile]:
    """Open a zip given as its parts in order, the one that ends in `.zip` last. Raises BadZipFile if it is damaged."""
    with ExitStack() as stack:
        if len(parts) == 1:
            yield stack.enter_context(zipfile.ZipFile(parts[0]))
            return
        files = [stack.enter_context(path.open("rb")) for path in parts]
        joined = _Joined(files)
        try:
            joined.append(io.BytesIO(_directory(joined)))
        except (struct.error, IndexError):
            raise zipfile.BadZipFile("a directory that does not fit the parts") from None
        yield stack.enter_context(zipfile.ZipFile(cast("IO[bytes]", joined)))


class _Joined:
    """Files read one after the other, as far as `zipfile` needs."""

    def __init__(self, files: Sequence[IO[bytes]]) -> None:
        self._files: list[IO[bytes]] = []
        self.starts = [0]  # of each file, and the end of the last
        self._position = 0
        for file in files:
            self.append(file)

    def append(self, file: IO[bytes]) -> None:
        self._files.append(file)
        self.starts.append(self.starts[-1] + file.seek(0, os.SEEK_END))

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.starts[-1]}[whence]
        if base + offset < 0:
            raise OSError("a place before the first byte")
        self._position = base + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = self.starts[-1] - self._position if size < 0 else size
        pieces = []
        while left > 0 and self._position < self.starts[-1]:
            number = bisect.bisect_right(self.starts, self._position) - 1
            self._files[number].seek(self._position - self.starts[number])
            piece = self._files[number].read(left)
            if not piece:
                break
            pieces.append(piece)
            self._position += len(piece)
            left -= len(piece)
        return b"".join(pieces)

    def read_at(self, part: int, offset: int, size: int) -> bytes:
        """Return bytes at an offset in one of the files."""
        self.seek(self.starts[part] + offset)
        return self.read(size)


def _directory(joined: _Joined) -> bytes:
    """Return a directory with offsets from the first byte, and its end records, to follow the last part."""
    part, offset, size, count = _find_directory(joined)
    entries = b"".join(_relocated(joined.read_at(part, offset, size), joined.starts))
    start = joined.starts[-1]
    end64 = _END64.pack(b"PK\6\6", _END64.size - 12, 45, 45, 0, 0, count, count, len(entries), start)
    locator = _LOCATOR.pack(b"PK\6\7", 0, start + len(entries), 1)
    end = _END.pack(b"PK\5\6", 0, 0, _FULL16, _FULL16, _FULL32, _FULL32, 0)
    return entries + end64 + locator + end


def _find_directory(joined: _Joined) -> tuple[int, int, int, int]:
    """Return the part of the directory, its offset there, its size, and the number of its entries."""
    last = len(joined.starts) - 2
    length = joined.starts[-1] - joined.starts[last]
    before = max(0, length - _FULL16 - _END.size - _LOCATOR.size)
    tail = joined.read_at(last, before, length - before)
    place = tail.rfind(b"PK\5\6")
    if place < 0:
        raise zipfile.BadZipFile("no directory at the end of the last part")
    _, number, part, _, count, size, offset, _ = _END.unpack_from(tail, place)
    if place >= _LOCATOR.size and tail[place - _LOCATOR.size :].startswith(b"PK\6\7"):
        _, part64, offset64, _ = _LOCATOR.unpack_from(tail, place - _LOCATOR.size)
        fields = _END64.unpack(joined.read_at(part64, offset64, _END64.size))
        number, part, _, count, size, offset = fields[4:]
    if number != last:
        raise zipfile.BadZipFile(f"expected {number + 1} parts, found {last + 1}")
    return part, offset, size, count


def _relocated(directory: bytes, starts: Sequence[int]) -> Iterator[bytes]:
    """Yield the entries of a directory with offsets from the first byte, as 64-bit values."""
    position = 0
    while position < len(directory):
        fields = list(_ENTRY.unpack_from(directory, position))
        if fields[0] != b"PK\1\2":
            raise zipfile.BadZipFile("a directory with an entry that is none")
        bounds = [*itertools.accumulate(fields[_NAME : _COMMENT + 1], initial=position + _ENTRY.size)]
        name, extra, comment = (directory[start:end] for start, end in itertools.pairwise(bounds))
        wide, others = _split_extra(extra)
        values = [next(wide) for field in (_SIZE, _COMPRESSED) if fields[field] == _FULL32]
        offset = next(wide) if fields[_OFFSET] == _FULL32 else fields[_OFFSET]
        values.append(starts[fields[_PART]] + offset)
        extra = struct.pack(f"<2H{len(values)}Q", _EXTRA64, 8 * len(values), *values) + others
        fields[_EXTRA], fields[_PART], fields[_OFFSET] = len(extra), 0, _FULL32
        yield _ENTRY.pack(*fields) + name + extra + comment
        position = bounds[-1]


def _split_extra(extra: bytes) -> tuple[Iterator[int], bytes]:
    """Return the 64-bit values of an entry's extra fields, and its other extra fields."""
    wide, others, position = b"", b"", 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        if kind == _EXTRA64:
            wide = extra[position + 4 : position + 4 + length]
        else:
            others += extra[position : position + 4 + length]
        position += 4 + length
    return iter(struct.unpack(f"<{len(wide) // 8}Q", wide[: len(wide) // 8 * 8])), others
