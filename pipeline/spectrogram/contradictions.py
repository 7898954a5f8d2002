"""Contradictions in headers: fields that say something of each other, and do not agree.

Decoders take one of them and ignore the other, so that a flipped bit makes another sound of a file: seconds of it are
missing, or it is played faster. What some programs write wrongly, and decoders read rightly, is no contradiction: a number
of bytes per second that belongs to no usual rate, odd chunks without a byte to fill them, and bytes behind the file.
"""

import math
import struct
from collections.abc import Iterator

from pipeline.spectrogram.containers import ReadAt, iterate_chunks
from pipeline.spectrogram.flac import find_flac_contradiction

_USUAL = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 88200, 96000, 192000)  # Hz
_PCM, _FLOAT, _EXTENSIBLE, _MICROSOFT, _IMA = 1, 3, 0xFFFE, 2, 0x11  # codings in a WAV header; the last two ADPCM
_ADPCM = (_MICROSOFT, _IMA)
_LONG = 0xFFFFFFFF  # a length of RF64 that is in its chunk `ds64`


def find_contradiction(read_at: ReadAt, size: int) -> str:
    """Return two fields of a file's header that do not agree, for messages; empty = there are none."""
    magic = read_at(0, 12)
    if magic[:4] in (b"RIFF", b"RF64", b"BW64") and magic[8:] == b"WAVE":
        return _wave(read_at, size, int.from_bytes(magic[4:8], "little"))
    if magic[:4] == b"riff":
        return next((_format(read_at(at + 24, 40)) for name, at in _w64(read_at) if name == b"fmt "), "")
    if magic[:4] == b"FORM":
        return _aiff(read_at, magic[8:])
    if magic[:4] == b"caff":
        return _caf(read_at(8, 44))
    if magic[:4] == b"fLaC":
        return find_flac_contradiction(read_at, size)
    return ""


def _wave(read_at: ReadAt, size: int, length: int) -> str:
    """Return a contradiction in a file that has `length` bytes behind the first eight by its header."""
    long_samples = 0  # bytes, of RF64
    for name, start, bytes_in in iterate_chunks(read_at, 12, "little"):
        if name == b"fmt " and (found := _format(read_at(start, 40))):
            return found
        if name == b"ds64":
            long_length, long_samples = struct.unpack("<QQ", read_at(start, 16).ljust(16, b"\0"))
            length = long_length if length == _LONG else length
        if name == b"data":
            end = start + (long_samples if bytes_in == _LONG else bytes_in)
            return _after_samples(read_at, start, end, min(size, length + 8))
    return ""


def _after_samples(read_at: ReadAt, start: int, end: int, file_end: int) -> str:
    """Return a contradiction where the samples of a WAV file end before the file, and no other chunk follows them."""
    if not start < end <= file_end - 8:
        return ""
    following = read_at(end, 9)
    if any(_is_name(following[at : at + 4]) for at in (0, 1)):
        return ""
    return f"the end of the samples at byte {end}, where no chunk begins, and of the file at byte {file_end}"


def _is_name(data: bytes) -> bool:
    return all(32 <= byte < 127 for byte in data) or not any(data)


def _format(chunk: bytes) -> str:
    """Return a contradiction in a chunk `fmt ` (also of W64)."""
    if len(chunk) < 16:
        return ""
    coding, channels, rate, bytes_per_second, block, bits = struct.unpack("<HHIIHH", chunk[:16])
    coding = int.from_bytes(chunk[24:26], "little") if coding == _EXTENSIBLE else coding
    if coding not in (_PCM, _FLOAT, *_ADPCM) or not block or not channels:
        return ""
    samples = 1  # in a block
    if coding in _ADPCM:
        samples, head = int.from_bytes(chunk[18:20], "little"), 7 if coding == _MICROSOFT else 4
        expected = (block - head * channels) * 2 // channels + (2 if coding == _MICROSOFT else 1)
        if (samples, bits) != (expected, 4):
            return f"{samples} samples of {channels} channels of {bits} bits in blocks of {block} bytes"
    elif block not in (channels * math.ceil(bits / 8), channels * 4 * (bits > 16)):
        return f"{channels} channels of {bits} bits in {block} bytes"
    implied = bytes_per_second * samples / block
    slack = samples / block if samples > 1 else 0  # a block's bytes per second are rounded
    if rate not in _USUAL and any(abs(usual - implied) <= slack for usual in _USUAL):
        return f"a rate of {rate} Hz, and {bytes_per_second} bytes per second, which are {implied:.0f} Hz"
    return ""


def _w64(read_at: ReadAt) -> Iterator[tuple[bytes, int]]:
    """Yield name and place of the chunks of a W64 file up to its samples."""
    position = 40
    while len(header := read_at(position, 24)) == 24 and header[:4] != b"data":
        length = int.from_bytes(header[16:], "little")
        yield header[:4], position
        if length < 24:
            return
        position += (length + 7) // 8 * 8


def _aiff(read_at: ReadAt, form: bytes) -> str:
    """Return a contradiction between an AIFF file's number of samples and its bytes of them; of AIFC files nothing."""
    common = b""
    for name, start, length in iterate_chunks(read_at, 12, "big"):
        if name == b"COMM":
            common = read_at(start, 8)
        if name == b"SSND" and form == b"AIFF" and len(common) == 8 and length > 8:
            channels, frames, bits = struct.unpack(">HIH", common)
            offset = int.from_bytes(read_at(start, 4), "big")
            expected, found = frames * channels * math.ceil(bits / 8), length - 8 - offset
            if frames and abs(expected - found) > 1 and found < 0x7F000000 - 4096:
                return f"{frames} samples of {channels} channels of {bits} bits in {found} bytes"
            return ""
    return ""


def _caf(header: bytes) -> str:
    if len(header) < 44 or header[:4] != b"desc" or header[20:24] != b"lpcm":
        return ""
    block, frames, channels, bits = struct.unpack(">IIII", header[28:44])
    if block not in (frames * channels * math.ceil(bits / 8), frames * channels * 4 * (bits > 16)):
        return f"{channels} channels of {bits} bits in {block} bytes"
    return ""
