"""Readers of encoded audio: libsndfile, and FFmpeg for what it does not read; and what makes them trust a file's header.

Conventions: blocks are (sample, channel) float32, in [-1, 1] for integer formats; counts of samples are per channel.

libsndfile says how many samples a file has, and stops there. The number is an estimate for MP3 without a frame that states
it, the first stream's for chained Ogg files, and none for files that were written to a pipe. So the structure of a file is
looked at first, and libsndfile is given a header that is right.
"""

import contextlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import soundfile

from pipeline.spectrogram.containers import SampleBytes, find_samples
from pipeline.spectrogram.contradictions import find_contradiction
from pipeline.spectrogram.ffmpeg import ADVICE, FFmpegError, FFmpegReader, find_container, has_ffmpeg
from pipeline.spectrogram.mp3 import Mp3Scan, scan_frames
from pipeline.spectrogram.ogg import OggScan, scan_pages
from pipeline.spectrogram.sources import REMEMBERED, BadClip, FileState, Part, Source

LOWEST_RATE, HIGHEST_RATE = 1000, 384_000  # Hz: from recorders of whales to those of bats

_GRACE = 0.001  # seconds that a file may lack, since some headers count a few samples too many

_UNKNOWN = 1 << 62  # samples; libsndfile says more where it does not know
_SIGNATURE = 400  # bytes, from which a container is known


class AudioReader(Protocol):
    """An opened file."""

    rate: int  # Hz
    num_channels: int
    num_samples: int | None  # None = it is known once the file has been read

    def seek(self, sample: int) -> int:
        """Move to a sample, forward where their number is unknown, and return the place: the end where it comes before."""

    def read(self, count: int) -> np.ndarray:
        """Return the next `count` samples, fewer at the end. Raises DecodingError."""

    def close(self) -> None:
        """Close the file."""


class DecodingError(Exception):
    """Audio that a decoder gives up in the middle of."""


@contextlib.contextmanager
def open_reader(source: Source, path: Path, *, whole: bool) -> Iterator[AudioReader]:
    """Yield encoded audio opened by its content, not by its suffix; `path` is for messages.

    With `whole` a file whose end is missing is refused; else only where it is of no use before. Raises BadClip with one of
    the reasons empty, unreadable, truncated, damaged.
    """
    if source.size == 0:
        raise BadClip("empty", f"{path}: expected audio, found a file of 0 bytes")
    if contradiction := find_contradiction(source.read_at, source.size):
        raise BadClip("damaged", f"{path}: expected a header that agrees with itself, found {contradiction}")
    samples = find_samples(source.read_at, source.size)
    missing = samples.missing(source.size) if samples else 0
    with contextlib.ExitStack() as opened:
        try:
            reader = _open(source, path, samples)
        except BadClip as error:
            if missing and error.reason == "unreadable":
                raise _lacking(path, samples, source.size) from None
            raise
        opened.callback(reader.close)
        _require_audio(reader, path)
        if whole and missing and not _few(missing, samples, source.size, reader):
            raise _lacking(path, samples, source.size)
        yield reader


def _open(source: Source, path: Path, samples: SampleBytes | None) -> AudioReader:
    readable = Part(source, samples.start, head=samples.corrected) if samples and samples.corrected else source
    try:
        reader = _SoundfileReader(readable)
    except soundfile.SoundFileError as error:
        return _open_with_ffmpeg(source, path, str(error).replace(repr(readable), repr(str(path))))
    if reader.format == "OGG":
        return _checked_ogg(reader, source, path)
    if reader.format == "MP3":
        return _checked_mp3(reader, source, path)
    return reader


def _open_with_ffmpeg(source: Source, path: Path, found: str) -> AudioReader:
    """Return a reader by FFmpeg. Raises BadClip; `found` is what libsndfile says."""
    container = find_container(source.read_at(0, _SIGNATURE))
    if container is None:
        raise BadClip("unreadable", f"{path}: expected WAV, FLAC, OGG or MP3, found: {found}")
    if container.name == "ogg":
        _require_pages(source, path)
    if not has_ffmpeg():
        missing = f"{container.title}, which libsndfile does not read ({found}); {ADVICE}"
        raise BadClip("unreadable", f"{path}: expected WAV, FLAC, OGG or MP3, found {missing}")
    try:
        return _FFmpegReader(source, container)
    except FFmpegError as error:
        raise BadClip("unreadable", f"{path}: expected {container.title}, found: {error}") from None


class _ForwardFile(soundfile.SoundFile):  # type: ignore[misc] # it has no types
    """A file that soundfile does not seek in after every read, which fails where libsndfile knows no length."""

    def seekable(self) -> bool:
        return self.frames < _UNKNOWN and bool(super().seekable())


class _SoundfileReader:
    """A file that libsndfile reads."""

    def __init__(self, source: Source | Part) -> None:
        """Open a file. Raises soundfile.SoundFileError."""
        source.seek(0)
        try:
            self._file = _ForwardFile(source)
        except RuntimeError as error:  # by which soundfile means a format
            raise soundfile.SoundFileRuntimeError(str(error)) from None
        self.format: str = self._file.format
        self.rate: int = self._file.samplerate
        self.num_channels: int = self._file.channels
        self.num_samples: int | None = self._file.frames if self._file.frames < _UNKNOWN else None
        self._read = 0  # samples

    def seek(self, sample: int) -> int:
        """Move to a sample, and return the place."""
        if self.num_samples is not None:
            return int(self._file.seek(sample))
        while self._read < sample and len(self.read(min(sample - self._read, self.rate))):
            pass
        return self._read

    def read(self, count: int) -> np.ndarray:
        """Return the next `count` samples, fewer at the end. Raises DecodingError."""
        try:
            block = np.asarray(self._file.read(out=np.empty((count, self.num_channels), dtype=np.float32)))
        except soundfile.SoundFileError as error:
            raise DecodingError(str(error)) from None
        self._read += len(block)
        return block

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _FFmpegReader(FFmpegReader):
    """A file that FFmpeg reads."""

    def read(self, count: int) -> np.ndarray:
        """Return the next `count` samples, fewer at the end. Raises DecodingError."""
        try:
            return super().read(count)
        except FFmpegError as error:
            raise DecodingError(str(error)) from None


class _ChainedReader:
    """Files that follow each other, as one."""

    def __init__(self, readers: list[_SoundfileReader]) -> None:
        self._readers, self._current = readers, 0
        self.rate, self.num_channels = readers[0].rate, readers[0].num_channels
        self._lengths = [reader.num_samples or 0 for reader in readers]
        self.num_samples: int | None = sum(self._lengths)

    def seek(self, sample: int) -> int:
        """Move to a sample, and return the place."""
        place, self._current = sample, 0
        while self._current < len(self._readers) - 1 and sample >= self._lengths[self._current]:
            sample -= self._lengths[self._current]
            self._current += 1
        self._readers[self._current].seek(sample)
        for reader in self._readers[self._current + 1 :]:
            reader.seek(0)
        return place

    def read(self, count: int) -> np.ndarray:
        """Return the next samples, at most `count`, none at the end. Raises DecodingError."""
        block = self._readers[self._current].read(count)
        if not len(block) and self._current < len(self._readers) - 1:
            self._current += 1
            return self.read(count)
        return block

    def close(self) -> None:
        """Close the files."""
        for reader in self._readers:
            reader.close()


class _Scan(NamedTuple):
    """What is remembered of a file: its structure, which is read once for all of its clips."""

    ogg: OggScan | None = None
    mp3: Mp3Scan | None = None


_scans: dict[FileState, _Scan] = {}  # of this process; the oldest first


def _scan(source: Source, kind: str) -> _Scan:
    state = source.state
    if state in _scans:
        return _scans[state]
    source.seek(0)
    scan = _Scan(ogg=scan_pages(source.read)) if kind == "OGG" else _Scan(mp3=scan_frames(source.read))
    if state is not None and source.fault is None:
        if len(_scans) == REMEMBERED:
            del _scans[next(iter(_scans))]
        _scans[state] = scan
    return scan


def _checked_ogg(reader: _SoundfileReader, source: Source, path: Path) -> AudioReader:
    """Return a reader of all streams of an Ogg file. Raises BadClip where it has lost bytes."""
    position = source.tell()
    try:
        scan = _require_pages(source, path)
    except BadClip:
        reader.close()
        raise
    source.seek(position)  # libsndfile relies on it
    if len(scan.links) <= 2:
        return reader
    reader.close()
    return _open_links(source, path, scan.links)


def _require_pages(source: Source, path: Path) -> OggScan:
    """Return what the pages of an Ogg file say. Raises BadClip where it has lost bytes."""
    scan = _scan(source, "OGG").ogg
    assert scan is not None
    if scan.fault:
        chain = "pages that follow each other, each with its checksum"
        expected = "a last page that ends the stream" if scan.fault.cut else chain
        raise _faulty(path, f"{expected} (RFC 3533)", scan.fault.found, cut=scan.fault.cut)
    return scan


def _open_links(source: Source, path: Path, links: list[int]) -> _ChainedReader:
    """Return a reader of the streams of a chained Ogg file. Raises BadClip where they differ in rate or channels."""
    readers: list[_SoundfileReader] = []
    try:
        for begin, end in pairwise(links):
            readers.append(_SoundfileReader(Part(source, begin, end)))
    except soundfile.SoundFileError as error:
        raise BadClip("unreadable", f"{path}: expected sound in every stream, found: {error}") from None
    kinds = {(reader.rate, reader.num_channels) for reader in readers}
    if len(kinds) > 1:
        found = ", ".join(f"{channels} channels at {rate} Hz" for rate, channels in sorted(kinds))
        raise BadClip("unreadable", f"{path}: expected streams of one rate, found {found}; cut the file between them")
    return _ChainedReader(readers)


def _checked_mp3(reader: _SoundfileReader, source: Source, path: Path) -> AudioReader:
    """Return a reader that knows how many samples an MP3 file has. Raises BadClip where it has lost bytes."""
    position = source.tell()
    scan = _scan(source, "MP3").mp3
    source.seek(position)  # libsndfile relies on it
    if scan is None:
        return reader
    if scan.fault:
        reader.close()
        expected = "whole frames to the end" if scan.fault.cut else "frames that follow each other"
        raise _faulty(path, expected, scan.fault.found, cut=scan.fault.cut)
    if scan.declared == scan.num_frames or not scan.count_frame:
        return reader
    reader.close()
    try:
        return _SoundfileReader(Part(source, scan.start, head=scan.count_frame))
    except soundfile.SoundFileError as error:
        raise BadClip("unreadable", f"{path}: expected MP3, found: {error}") from None


def _faulty(path: Path, expected: str, found: str, *, cut: bool) -> BadClip:
    return BadClip("truncated" if cut else "damaged", f"{path}: expected {expected}, found {found}")


def _require_audio(reader: AudioReader, path: Path) -> None:
    """Raise BadClip for a rate that no recording has, and for a header without samples."""
    if not LOWEST_RATE <= reader.rate <= HIGHEST_RATE:
        expected = f"expected a rate of {LOWEST_RATE} to {HIGHEST_RATE} Hz"
        raise BadClip("unreadable", f"{path}: {expected}, found {reader.rate} Hz")
    if reader.num_samples is not None and reader.num_samples <= 0:
        raise BadClip("empty", f"{path}: expected audio, found a header without samples")


def _few(missing: int, samples: SampleBytes | None, size: int, reader: AudioReader) -> bool:
    """Whether missing bytes hold less than a millisecond; what libsndfile counts is in the bytes that are there."""
    if samples is None or reader.num_samples is None:
        return False
    return missing / max(1, size - samples.start) * reader.num_samples <= _GRACE * reader.rate


def _lacking(path: Path, samples: SampleBytes | None, size: int) -> BadClip:
    assert samples is not None
    expected, found = f"{samples.declared} bytes of samples, as its header says", max(0, size - samples.start)
    return BadClip("truncated", f"{path}: expected {expected}, found {found}")
