"""Integrity of MP3 files (ISO 11172-3): the chain of frames, each of which says how long it is and where its data begin.

Without a frame that states their number (Xing, Info), decoders estimate it from the first frame's bit rate: libsndfile stops
there, be it seconds before the end. The number is counted here, and such a frame made of it.

A header says where the next frame begins; one of layer III also how far back its data reach, into bytes that the frames
before it have left (the bit reservoir). So bytes that are missing, added, or wiped over more than a frame are found.
What is changed inside a frame's data is not: MP3 has no checksum of it.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

_BLOCK = 1 << 20  # bytes that are read at once
_LONGEST = 4096  # bytes: more than any frame has, and the header of a tag
_SAME = 0xFFFE0C00  # bits of a header that all frames share: sync, version, layer, rate
_RESERVOIR = 511  # bytes, at most

_RATES = (44100, 48000, 32000)  # Hz, of version 1
_KBITS = {  # by (version 1, layer)
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


class Mp3Fault(NamedTuple):
    """What is wrong with an MP3 file."""

    cut: bool  # its end is missing; else bytes in it are missing, added or changed
    found: str  # for messages


class Mp3Scan(NamedTuple):
    """What the frames of an MP3 file say."""

    start: int  # byte of the first frame with sound
    num_frames: int
    samples_per_frame: int
    declared: int | None  # number of frames in the Xing or Info frame; None = no such frame
    fault: Mp3Fault | None  # the first
    count_frame: bytes  # an Info frame with the number found, to be read in place of the bytes before `start`

    @property
    def num_samples(self) -> int:
        """Number of samples per channel, with the delays of encoder and decoder."""
        return self.num_frames * self.samples_per_frame


class _Header(NamedTuple):
    """Fields of a frame's header."""

    value: int  # the 32 bits
    length: int  # bytes of the frame
    samples: int  # per channel
    version_1: bool
    layer: int
    mono: bool
    protected: bool  # a checksum of 2 bytes follows

    @property
    def side_length(self) -> int:
        """Bytes of side information; layer III."""
        return (17 if self.mono else 32) if self.version_1 else (9 if self.mono else 17)

    @property
    def side_start(self) -> int:
        """Byte of the frame at which side information begins; layer III."""
        return 6 if self.protected else 4


def scan_frames(read: Callable[[int], bytes]) -> Mp3Scan | None:
    """Return what the frames of an MP3 file say, which `read` gives from its start, so many bytes at most at a time.

    None where there are no frames whose lengths are known (free format). Tags are skipped, and what follows the last frame
    is no part of the file.
    """
    walk = _Walk(_Buffer(read))
    return walk.run()


class _Buffer:
    """Bytes of a file that is read forward, by their offsets."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read, self._data, self._first, self._ended = read, b"", 0, False

    def get(self, offset: int, size: int) -> bytes:
        """Return bytes from `offset` on, fewer at the end; offsets before earlier ones by more than a block are gone."""
        while not self._ended and offset + size > self._first + len(self._data):
            more = self._read(_BLOCK)
            self._ended = not more
            kept = max(0, min(offset - self._first - _BLOCK, len(self._data)))
            self._data, self._first = self._data[kept:] + more, self._first + kept
        at = offset - self._first
        return self._data[at : at + size]


class _Walk:
    """Walk from frame to frame."""

    def __init__(self, file: _Buffer) -> None:
        self._file = file
        self._position = 0
        self._fault: Mp3Fault | None = None
        self._free = _RESERVOIR  # bytes before the next frame's data that it may use; at first unknown

    def run(self) -> Mp3Scan | None:
        self._skip_tags()
        begin = self._position
        first = self._find(None)
        if first is None:
            return None
        if self._position > begin and (self._at(begin, first) or re.search(b"Xing|Info", self._file.get(begin, 64))):
            self._fault = Mp3Fault(cut=False, found=f"a frame at byte {begin} that no other follows")
        declared = self._declared(first)
        if declared is not None:
            self._position += first.length
        start, num_frames = self._position, 0
        while self._fault is None and (header := self._next(first)):
            if first.layer == 3:
                self._follow_reservoir(header)
            self._position += header.length
            num_frames += 1
        if self._fault is None and declared is not None and num_frames < declared - 1:
            self._fault = Mp3Fault(cut=True, found=f"{num_frames} frames of {declared}")
        return Mp3Scan(start, num_frames, first.samples, declared, self._fault, _count_frame(first, num_frames))

    def _skip_tags(self) -> None:
        while length := _tag_length(self._file.get(self._position, 32)):
            self._position += length

    def _next(self, first: _Header) -> _Header | None:
        """Return the header at the position, or behind tags; None at the end. Bytes that belong to no frame are a fault."""
        self._skip_tags()
        header = self._at(self._position, first)
        if header:
            if len(self._file.get(self._position, header.length)) < header.length:
                self._fault = Mp3Fault(cut=True, found=f"the end in the frame at byte {self._position}")
                return None
            return header
        lost = self._position
        if self._find(first):
            count = self._position - lost
            self._fault = Mp3Fault(cut=False, found=f"{count} bytes at byte {lost} that belong to no frame")
        return None

    def _at(self, position: int, first: _Header | None) -> _Header | None:
        header = _parse(self._file.get(position, 4))
        return header if header and (first is None or not (header.value ^ first.value) & _SAME) else None

    def _find(self, first: _Header | None) -> _Header | None:
        """Move to the next frame that another follows, or the end of the file, and return its header."""
        while window := self._file.get(self._position, _LONGEST):
            for at in _syncs(window):
                header = self._at(self._position + at, first)
                behind = self._position + at + header.length if header else 0
                if header and (self._at(behind, header) or self._ends(behind)):
                    self._position += at
                    return header
            self._position += max(1, len(window) - 3)
        return None

    def _ends(self, position: int) -> bool:
        """Whether the file ends before this byte, with at least the one before it."""
        return len(self._file.get(position - 1, 2)) == 1

    def _declared(self, first: _Header) -> int | None:
        """Return the number of frames that a Xing or Info frame at the position states."""
        frame = self._file.get(self._position, first.length)
        at = 4 + first.side_length  # decoders look for it here, with or without a checksum
        if first.layer != 3 or frame[at : at + 4] not in (b"Xing", b"Info"):
            return None
        if any(frame[6:at]):  # behind a checksum; decoders then take the frame for sound, and estimate the number
            self._fault = Mp3Fault(cut=False, found=f"other bytes than 0 before {frame[at : at + 4].decode()}")
        return int.from_bytes(frame[at + 8 : at + 12], "big") if frame[at + 7] & 1 else 0

    def _follow_reservoir(self, header: _Header) -> None:
        """Note a fault where a frame's data begin in bytes that frames before it use, or end behind it."""
        frame = self._file.get(self._position + header.side_start, header.side_length)
        back, used = _side(int.from_bytes(frame, "big"), header)
        if back > self._free:
            found = (
                f"a frame at byte {self._position} whose data begin {back} bytes before, where {self._free} are free"
            )
            self._fault = Mp3Fault(cut=False, found=found)
        left = back + header.length - header.side_start - header.side_length - used
        if left < 0:
            found = f"a frame at byte {self._position} with data for {-left} bytes more than it has"
            self._fault = Mp3Fault(cut=False, found=found)
        self._free = min(_RESERVOIR, left)


def _parse(data: bytes) -> _Header | None:
    """Return a frame's header; None where the bytes are none, or the length cannot be known."""
    value = int.from_bytes(data, "big")
    version, layer = value >> 19 & 3, 4 - (value >> 17 & 3)
    kbits, rate, padding = value >> 12 & 15, value >> 10 & 3, value >> 9 & 1
    if len(data) < 4 or value >> 21 != 0x7FF or version == 1 or layer == 4 or kbits in (0, 15) or rate == 3:
        return None
    version_1 = version == 3
    hertz = _RATES[rate] >> (0 if version_1 else 1 if version == 2 else 2)
    bits = 1000 * _KBITS[version_1, layer][kbits]
    samples = 384 if layer == 1 else 576 if layer == 3 and not version_1 else 1152
    length = (12 * bits // hertz + padding) * 4 if layer == 1 else samples // 8 * bits // hertz + padding
    return _Header(value, length, samples, version_1, layer, value >> 6 & 3 == 3, not value >> 16 & 1)


def _side(bits: int, header: _Header) -> tuple[int, int]:
    """Return how many bytes before a frame its data begin, and how many bytes long they are, from its side information."""
    channels = 1 if header.mono else 2
    granules, step = (2 * channels, 59) if header.version_1 else (channels, 63)
    back = bits >> (8 * header.side_length - (9 if header.version_1 else 8))
    lengths = sum(bits >> (step * (number + 1) - 12) & 0xFFF for number in range(granules))
    return back, (lengths + 7) // 8


def _syncs(window: bytes) -> list[int]:
    """Return the places of bytes that may begin a frame."""
    found, at = [], window.find(b"\xff")
    while 0 <= at < len(window) - 3:
        found.append(at)
        at = window.find(b"\xff", at + 1)
    return found


def _tag_length(data: bytes) -> int:
    """Return the length in bytes of an ID3 or APE tag that begins here; 0 = none."""
    if data[:3] == b"ID3" and len(data) >= 10:
        size = sum((byte & 0x7F) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True))
        return 10 + size + (10 if data[5] & 0x10 else 0)
    if data[:3] == b"TAG":
        return 128
    if data[:8] == b"APETAGEX" and len(data) == 32:
        return 32 + (int.from_bytes(data[12:16], "little") if data[23] & 0x20 else 0)
    return 0


def _count_frame(first: _Header, num_frames: int) -> bytes:
    """Return a frame without sound that states the number of the others (Info), for files of layer III; else nothing."""
    if first.layer != 3:
        return b""
    for kbits in range(1, 15):
        header = _parse((first.value & ~0xF200 | kbits << 12 | 1 << 16).to_bytes(4, "big"))
        content = bytes(first.side_length) + b"Info" + (1).to_bytes(4, "big") + num_frames.to_bytes(4, "big")
        if header and header.length >= 4 + len(content) + 8:
            return (header.value.to_bytes(4, "big") + content).ljust(header.length, b"\0")
    return b""
