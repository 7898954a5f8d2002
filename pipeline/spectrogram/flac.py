"""Contradictions between a FLAC file's header and its frames (RFC 9639), each of which has a checksum.

The header, STREAMINFO, has none. Decoders take its rate, and stop after its number of samples.
"""

from typing import NamedTuple

from pipeline.spectrogram.containers import ReadAt

_TAIL = 1 << 16  # bytes at the end in which the last frame is looked for
_SYNC = (b"\xff\xf8", b"\xff\xf9")  # of frames of one length, and of various

# By the codes in a frame; 0 = the file's, or one that needs more bytes.
_RATES = (0, 88200, 176400, 192000, 8000, 16000, 22050, 24000, 32000, 44100, 48000, 96000, 0, 0, 0, 0)  # Hz
_LENGTHS = (0, 192, 576, 1152, 2304, 4608, 0, 0, *(256 << shift for shift in range(8)))  # samples


class _Frame(NamedTuple):
    """Header of a frame."""

    rate: int  # Hz; 0 = not said
    first: int  # number of its first sample
    length: int  # samples


def find_flac_contradiction(read_at: ReadAt, size: int) -> str:
    """Return what a FLAC file's header and its frames say of each other, for messages; empty = they agree."""
    info = read_at(8, 34)
    if len(info) < 34:
        return ""
    longest = int.from_bytes(info[2:4], "big")
    rate, total = int.from_bytes(info[10:13], "big") >> 4, int.from_bytes(info[13:18], "big") & (1 << 36) - 1
    tail = read_at(max(0, size - _TAIL), _TAIL)
    last = _last_frame(tail, longest)
    if last is None:
        return ""
    if last.rate not in (0, rate):
        return f"a rate of {rate} Hz, and of {last.rate} Hz in a frame"
    found = last.first + last.length
    return f"{total} samples, and frames with {found}" if total and found > total else ""


def _last_frame(tail: bytes, longest: int) -> _Frame | None:
    """Return the last frame whose header is in these bytes; `longest` is the number of samples in a frame before it."""
    end = len(tail)
    while (at := max(tail.rfind(sync, 0, end) for sync in _SYNC)) >= 0:
        if frame := _parse(tail[at : at + 16], longest):
            return frame
        end = at + 1
    return None


def _parse(data: bytes, longest: int) -> _Frame | None:
    """Return the header of a frame that begins here; None where its checksum is not that of its bytes."""
    if len(data) < 16:
        return None
    number, at = _number(data, 4)
    code, rate = data[2] >> 4, data[2] & 15
    length = _LENGTHS[code]
    if code in (6, 7):
        length = int.from_bytes(data[at : at + code - 5], "big") + 1
        at += code - 5
    at += {12: 1, 13: 2, 14: 2}.get(rate, 0)
    if number < 0 or not length or _checksum(data[:at]) != data[at]:
        return None
    return _Frame(_RATES[rate], number if data[1] & 1 else number * longest, length)


def _number(data: bytes, at: int) -> tuple[int, int]:
    """Return a number, written as UTF-8 writes a character, and the place behind it; -1 = none."""
    ones = 8 - (~data[at] & 0xFF).bit_length()
    if ones in (1, 8):
        return -1, at + 1
    value = data[at] & (0x7F >> ones)
    for byte in data[at + 1 : at + max(ones, 1)]:
        value = value << 6 | byte & 0x3F
    return value, at + max(ones, 1)


def _checksum(data: bytes) -> int:
    """Return the CRC-8 with the polynomial x^8 + x^2 + x + 1."""
    value = 0
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value << 1 ^ (0x07 if value & 0x80 else 0)) & 0xFF
    return value
