"""Integrity of Ogg files (RFC 3533): every page has a checksum and a number, which libsndfile does not look at.

libsndfile passes over a damaged page without an error, so that seconds of sound are missing in the middle of a whole file.
"""

import struct
import zlib
from collections.abc import Callable
from typing import NamedTuple

_HEADER = 27  # bytes of a page before the lengths of its segments
_BEGINS, _ENDS = 2, 4  # flags of a stream's first and last page

_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class OggFault(NamedTuple):
    """What is wrong with an Ogg file."""

    cut: bool  # its end is missing; else bytes in it are missing, added or changed
    found: str  # for messages


class _Page(NamedTuple):
    begins: bool
    ends: bool
    stream: int
    number: int
    intact: bool  # whether its checksum is that of its bytes


class OggScan(NamedTuple):
    """What the pages of an Ogg file say."""

    fault: OggFault | None  # the first
    links: list[int]  # bytes at which streams begin that follow each other (a chained file), and the end of the last


def scan_pages(read: Callable[[int], bytes]) -> OggScan:
    """Return what the pages of an Ogg file say, which `read` gives from its start, so many bytes at most at a time.

    Several streams may follow each other or be interleaved. What follows the end of all streams and is no page counts as no
    part of the file, as decoders have it.
    """
    links: list[int] = []
    fault = _walk(read, links)
    return OggScan(fault, links)


def _walk(read: Callable[[int], bytes], links: list[int]) -> OggFault | None:
    """Return the first fault, and add the links to `links`."""
    following: dict[int, int] = {}  # number of the next page of each stream that has not ended
    ended = True  # all streams so far, or none has begun
    at = 0
    while header := read(_HEADER):
        if header[:4] != b"OggS":
            links.append(at)
            return OggFault(cut=False, found=f"no page at byte {at}") if following or not at else None
        lengths = read(header[-1]) if len(header) == _HEADER else b""
        body = read(sum(lengths))
        if len(header) < _HEADER or len(lengths) < header[-1] or len(body) < sum(lengths):
            return OggFault(cut=True, found=f"the end in the page at byte {at}")
        page = _parse(header, lengths + body)
        expected = page.number if page.begins else following.get(page.stream)
        if not page.intact:
            return OggFault(cut=False, found=f"another checksum of the page at byte {at}")
        if page.number != expected:
            return OggFault(cut=False, found=f"page {page.number} at byte {at}, where page {expected} follows")
        if ended:
            links.append(at)
        ended = False
        following[page.stream] = page.number + 1
        if page.ends:
            del following[page.stream]
            ended = not following
        at += len(header) + len(lengths) + len(body)
    links.append(at)
    return OggFault(cut=True, found="a stream without end") if following else None


def _parse(header: bytes, rest: bytes) -> _Page:
    flags, stream, number, checksum = struct.unpack("<5xB8xIIIx", header)
    intact = checksum == checksum_of(header[:22] + bytes(4) + header[26:] + rest)
    return _Page(bool(flags & _BEGINS), bool(flags & _ENDS), stream, number, intact)


def checksum_of(page: bytes) -> int:
    """Return the CRC-32 of a page whose checksum is 0: polynomial 0x04c11db7, from 0, nothing inverted.

    It is zlib's, which starts from ones, inverts its result, and reads the bits of every byte in the other order.
    """
    reversed_crc = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{reversed_crc:032b}"[::-1], 2)
