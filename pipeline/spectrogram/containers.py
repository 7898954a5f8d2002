"""Headers of containers: where a file's samples lie, and how many bytes they should have.

libsndfile reads what is left of a file that was cut, without an error. A program that writes to a pipe cannot go back to
fill in the length: what it leaves there (0, or the largest number) means that the samples go on to the end of the file.
"""

import re
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple, TypeAlias

ReadAt: TypeAlias = Callable[[int, int], bytes]  # (offset, size) -> bytes of the file, fewer at its end
Order: TypeAlias = Literal["big", "little"]  # of the bytes of a number

_MOST_CHUNKS = 10_000  # that are looked at
_LONGEST_HEADER = 1 << 20  # bytes, of one that is corrected
_W64_LENGTH = 24  # bytes of the header of a chunk: an identifier of 16, and a length that includes both
_AIFF_UNKNOWN = 0x7F000000  # from SoX


class SampleBytes(NamedTuple):
    """Bytes of a file that hold its samples."""

    start: int  # offset of the first
    declared: int | None  # how many there are by the header; None = to the end of the file
    corrected: bytes = (
        b""  # header that says so, to be read in place of the bytes before `start`; empty = the file's own
    )

    def missing(self, size: int) -> int:
        """Return how many declared bytes a file of this size lacks."""
        return 0 if self.declared is None else max(0, self.start + self.declared - size)


def find_samples(read_at: ReadAt, size: int) -> SampleBytes | None:
    """Return where the samples of a file of `size` bytes are; None where its container is another, or has none."""
    magic = read_at(0, 20)
    if magic[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and magic[8:12] == b"WAVE":
        return _riff(read_at, size, magic)
    if magic[:4] == b"RIFF" and magic[8:12] == b"AVI ":
        length = int.from_bytes(magic[4:8], "little")
        return SampleBytes(8, None if _unknown(length) or not length else length)
    if magic[:4] == b"riff":
        return _w64(read_at)
    if magic[:4] == b"FORM":
        return _iff(read_at)
    if magic[:4] in (b".snd", b"dns."):
        return _au(magic)
    if magic[:4] == b"caff":
        return _caf(read_at)
    if magic[:7] == b"NIST_1A":
        return _sphere(read_at)
    if magic == b"Creative Voice File\x1a":
        return _voc(read_at, size)
    if magic[4:8] == b"ftyp":
        return _mp4(read_at, size)
    if magic[:4] == b"\x1aE\xdf\xa3":
        return _matroska(read_at)
    return None


def _riff(read_at: ReadAt, size: int, magic: bytes) -> SampleBytes | None:
    order = _order(big=magic[:4] == b"RIFX")
    long_length: int | None = None  # of RF64
    for name, start, length in iterate_chunks(read_at, 12, order):
        if name == b"ds64":
            long_length = int.from_bytes(read_at(start + 8, 8), order)
        if name != b"data":
            continue
        if magic[:4] in (b"RF64", b"BW64") and length == 0xFFFFFFFF:
            return SampleBytes(start, long_length or None)
        if length == 0 and 8 + int.from_bytes(magic[4:8], order) <= start < min(size, _LONGEST_HEADER):
            found = min(size - start, 0xFFFFFFFF - start)
            return SampleBytes(start, None, read_at(0, start - 4) + found.to_bytes(4, order))
        return SampleBytes(start, None if _unknown(length) else length)
    return None


def _unknown(length: int) -> bool:
    """Whether a length of 32 bits is what programs write that do not know it: the largest number, or nearly."""
    return any(limit - 4096 <= length <= limit for limit in (1 << 31, 1 << 32))


def _w64(read_at: ReadAt) -> SampleBytes | None:
    position = 40
    for _ in range(_MOST_CHUNKS):
        header = read_at(position, _W64_LENGTH)
        length = int.from_bytes(header[16:], "little")
        if header[:4] == b"data":
            return SampleBytes(position + _W64_LENGTH, length - _W64_LENGTH if length > _W64_LENGTH else None)
        if length < _W64_LENGTH:
            return None
        position += (length + 7) // 8 * 8
    return None


def _iff(read_at: ReadAt) -> SampleBytes | None:
    for name, start, length in iterate_chunks(read_at, 12, "big"):
        unknown = _unknown(length) or _AIFF_UNKNOWN <= length < _AIFF_UNKNOWN + 4096
        if name == b"SSND":
            return SampleBytes(start + 8, None if unknown or length < 8 else length - 8)
        if name == b"BODY":
            return SampleBytes(start, None if unknown else length)
    return None


def _au(magic: bytes) -> SampleBytes:
    start, length = (int.from_bytes(magic[at : at + 4], _order(big=magic[:1] == b".")) for at in (4, 8))
    return SampleBytes(start, None if _unknown(length) else length)


def _caf(read_at: ReadAt) -> SampleBytes | None:
    position = 8
    for _ in range(_MOST_CHUNKS):
        header = read_at(position, 12)
        length = int.from_bytes(header[4:], "big", signed=True)
        if header[:4] == b"data":
            return SampleBytes(position + 16, length - 4 if length >= 4 else None)  # behind the count of edits
        if len(header) < 12 or length < 0:
            return None
        position += 12 + length
    return None


def _sphere(read_at: ReadAt) -> SampleBytes | None:
    header = read_at(0, 4096).partition(b"end_head")[0].decode("ascii", "replace")
    fields = dict(re.findall(r"^(\w+) -i (\d+)", header, flags=re.MULTILINE))
    lengths = [int(fields.get(name, 0)) for name in ("sample_count", "channel_count", "sample_n_bytes")]
    start = re.match(r"NIST_1A\s+(\d+)", header)
    if not start or not all(lengths) or "shorten" in header:
        return None
    return SampleBytes(int(start[1]), lengths[0] * lengths[1] * lengths[2])


def _voc(read_at: ReadAt, size: int) -> SampleBytes | None:
    """Return the blocks of a VOC file as one: they end with the first that the file does not hold as a whole."""
    start = position = int.from_bytes(read_at(20, 2), "little")
    for _ in range(_MOST_CHUNKS):
        header = read_at(position, 4)
        if len(header) < 4 or not header[0]:
            break
        position += 4 + int.from_bytes(header[1:], "little")
        if position > size:
            break
    return SampleBytes(start, position - start)


def _mp4(read_at: ReadAt, size: int) -> SampleBytes | None:
    """Return the boxes of an MP4 file as one: they end with the first that the file does not hold as a whole."""
    position = 0
    for _ in range(_MOST_CHUNKS):
        header = read_at(position, 16)
        length = int.from_bytes(header[:4], "big")
        if length == 1:
            length = int.from_bytes(header[8:], "big")
        if len(header) < 8 or length < 8:  # 0: to the end of the file
            break
        position += length
        if position > size:
            break
    return SampleBytes(0, position)


def _matroska(read_at: ReadAt) -> SampleBytes | None:
    """Return the segment of a Matroska file, which holds everything but the file's type."""
    start, length = _matroska_length(read_at(4, 8), 4)
    start, length = _matroska_length(read_at(start + length + 4, 8), start + length + 4)
    return SampleBytes(start, length if length >= 0 else None)


def _matroska_length(data: bytes, position: int) -> tuple[int, int]:
    """Return where an element begins whose length is at this position, and its length in bytes; -1 = unknown."""
    width = 9 - (data[0].bit_length() if data else 0)  # leading zero bits of the first byte, and one
    value, ones = int.from_bytes(data[:width], "big") & (1 << 7 * width) - 1, (1 << 7 * width) - 1
    return position + width, -1 if value == ones else value


def iterate_chunks(read_at: ReadAt, position: int, order: Order) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, offset of the content, and length in bytes, of the chunks of a RIFF or IFF file."""
    for _ in range(_MOST_CHUNKS):
        header = read_at(position, 8)
        if len(header) < 8:
            return
        length = int.from_bytes(header[4:], order)
        yield header[:4], position + 8, length
        position += 8 + length + length % 2


def _order(*, big: bool) -> Order:
    return "big" if big else "little"
