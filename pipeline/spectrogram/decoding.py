"""Decoding of audio files to waveforms, for building spectrograms and for prediction alike.

Conventions: a waveform is mono float32, shape (sample,), in [-1, 1] for integer formats; `start` and `duration` are seconds
of the source. Mono is the mean of the channels. Other sample rates are resampled by soxr at quality HQ; another resampler
would change the features.

What libsndfile says of a file counts only if the file could be read, and has the content that the manifest names, before and
after decoding. libsndfile takes a failing read for the end of the file, so it reads through an object that keeps the error.
"""

import contextlib
import hashlib
import io
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import soundfile
import soxr
from typing_extensions import Buffer

from pipeline.artifacts.clips import ClipRecord
from pipeline.corpora.parquet_audio import SUFFIX as PARQUET
from pipeline.corpora.parquet_audio import read_row
from pipeline.errors import CorpusError
from pipeline.spectrogram.ogg import OggFault, find_fault

# Endings of files in the formats that are read, for looking through folders; a file that is named may have any ending.
SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3")

RESAMPLING_QUALITY = "HQ"  # of soxr; rejects aliases to about 100 dB

_LOWEST_RATE, _HIGHEST_RATE = 8000, 192000  # Hz
_BLOCK = (
    1 << 18
)  # samples per channel; after each block soundfile seeks to its position, and FLAC decodes a frame again

# libsndfile's log message for a WAV whose data chunk ends after the file; it reads the rest without an error. A recorder
# that writes to a pipe cannot know the length and sets all bits: such a file is whole.
_SHORT_WAV = re.compile(r"^data *: (\d+) \(should be (\d+)\)", re.MULTILINE)
_UNKNOWN_LENGTHS = (0, 0x7FFFFFFF, 0xFFFFFFFF)

# A member is read into memory as a whole; ten seconds of the largest format take 60 MB.
_LARGEST_MEMBER = 1 << 30  # bytes

_REMEMBERED = 1024  # files whose digest is kept, since a long recording may have many clips


class BadClip(Exception):  # noqa: N818 - not a fault of the program but a property of a clip
    """A clip that cannot be used: `reason` is one word for counting, `message` is for people."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason, self.message = reason, message
        super().__init__(reason, message)

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


@dataclass(frozen=True, slots=True)
class PackedAudio:
    """Place of a clip's bytes in a file that holds many, a tar or a Parquet file, from the manifest."""

    name: str  # for messages
    offset: int  # bytes from the beginning of a tar; row of a Parquet file
    size: int  # bytes
    content: str  # digest of the bytes, to detect a file that was packed again

    @classmethod
    def of(cls, row: ClipRecord) -> Self | None:
        """Return the place of a manifest row, or None when its clip has a file of its own."""
        return cls(row["member"], row["offset"], row["size"], row["content"]) if row["member"] else None


def decode(
    path: Path,
    *,
    start: float,
    duration: float,
    sample_rate: int,
    max_duration: float,
    min_samples: int = 1,
    member: PackedAudio | None = None,
    content: str = "",
) -> np.ndarray:
    """Return the waveform of `duration` seconds from `start` (0 = to the end), shape (sample,) float32 at `sample_rate`.

    Reads WAV, FLAC, OGG and MP3 at 8 to 192 kHz, of any depth and number of channels, from a file, or from a `member` of a
    tar or Parquet file; only the part asked for is decoded. `content` is the digest that a file must have, empty = any; a
    member has its own.

    Raises BadClip with one of the reasons missing, read_error (the file is there and cannot be read: no permission, a
    failing disk), moved (it has other bytes than the manifest names), unreadable (no audio), empty, truncated, damaged (in
    the middle), too_short (fewer than `min_samples`, one frame of the front end), too_long (more than `max_duration`
    seconds), not_finite, silent. The first three say nothing about the content, and
    may pass.
    """
    where = path / member.name if member else path  # for messages
    with _opened(path, where, member, content) as source:
        waveform, native_rate = _decode(source, where, start, duration, max_duration)
    return prepare_waveform(waveform, native_rate, sample_rate=sample_rate, min_samples=min_samples, where=str(where))


class ForwardReader:
    """A file that is read forward, block by block, at its own rate: of a long one only a block is in memory.

    The samples are those that `decode` reads, before resampling. Raises BadClip as `decode` does, from the method that finds
    the fault: a file that is cut short may be noticed only where it ends.
    """

    def __init__(self, path: Path) -> None:
        """Open a file, and read its header."""
        self._path, self._read = path, 0
        with contextlib.ExitStack() as opened:
            source = opened.enter_context(_opened(path, path, None, ""))
            self._file = opened.enter_context(_open_audio(source, path))
            self.rate: int = self._file.samplerate  # Hz
            self.num_samples: int = self._file.frames  # as its header says
            _require_audio(self._file, path)
            if self._file.format == "OGG":
                _require_pages(source, path)
            _require_whole(self._file, path)
            self._opened = opened.pop_all()

    def read(self) -> np.ndarray:
        """Return the next samples (sample,) float32: the mean of the channels. Empty at the end of the file."""
        block = np.empty((min(_BLOCK, self.num_samples - self._read), self._file.channels), dtype=np.float32)
        if not len(block):
            return np.empty(0, dtype=np.float32)
        try:
            block = self._file.read(out=block)
        except soundfile.SoundFileError as error:
            raise self._cut_short(f"{self._read} before: {error}") from None
        if not len(block):
            raise self._cut_short(self._read)
        self._read += len(block)
        mono = np.empty(len(block), dtype=np.float32)
        _mix(block, mono)
        return mono

    def close(self) -> None:
        self._opened.close()

    def _cut_short(self, found: object) -> BadClip:
        return _truncated(self._path, f"{self.num_samples} samples, as its header says", found)


def prepare_waveform(
    waveform: np.ndarray, rate: int, *, sample_rate: int, min_samples: int, where: str, allow_silence: bool = False
) -> np.ndarray:
    """Return a waveform (sample,) of `rate` Hz at `sample_rate` Hz, float32.

    Raises BadClip with one of the reasons not_finite, silent (unless `allow_silence`), too_short; `where` names the sound.
    """
    if not np.isfinite(waveform).all():
        bad = int((~np.isfinite(waveform)).sum())
        raise BadClip("not_finite", f"{where}: expected finite samples, found {bad} NaN or infinite")
    if not allow_silence and not waveform.any():
        raise BadClip("silent", f"{where}: expected sound, found {len(waveform)} samples that are all 0")
    if rate != sample_rate:
        waveform = soxr.resample(waveform, rate, sample_rate, RESAMPLING_QUALITY)
    if len(waveform) < min_samples:
        found = f"found {len(waveform)}"
        raise BadClip("too_short", f"{where}: expected at least {min_samples} samples at {sample_rate} Hz, {found}")
    return np.ascontiguousarray(waveform, dtype=np.float32)


class _Source:
    """Encoded audio as libsndfile reads it: a file, or bytes in memory."""

    def __init__(self, raw: io.BufferedIOBase) -> None:
        self._raw = raw
        self.size = raw.seek(0, os.SEEK_END)  # bytes
        self.fault: OSError | None = None  # of a read
        raw.seek(0)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move, and return the new position."""
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        """Return the position."""
        return self._raw.tell()

    def readinto(self, buffer: Buffer) -> int:
        """Fill `buffer`, and return how many bytes there were; none after an error, which is kept."""
        try:
            read = self._raw.readinto(buffer)
        except OSError as error:
            self.fault, read = error, 0
        return read

    def read(self, size: int) -> bytes:
        """Return the next bytes, fewer at the end; none after an error, which is kept."""
        buffer = bytearray(size)
        return bytes(buffer[: self.readinto(buffer)])

    def ogg_fault(self) -> OggFault | None:
        """Return the first fault of an Ogg file; the position stays, since libsndfile relies on it.

        A file is read once for all of its clips.
        """
        state = _State.of(self._raw) if isinstance(self._raw, io.BufferedReader) else None
        if state in _ogg_faults:
            return _ogg_faults[state]
        position = self.tell()
        self.seek(0)
        fault = find_fault(self.read)
        self.seek(position)
        if state is not None and self.fault is None:
            if len(_ogg_faults) == _REMEMBERED:
                del _ogg_faults[next(iter(_ogg_faults))]
            _ogg_faults[state] = fault
        return fault


class _State(NamedTuple):
    """Evidence that a file is the same as before, from the system."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, file: io.BufferedReader) -> Self:
        """Return the state of an open file."""
        status = os.fstat(file.fileno())
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@contextlib.contextmanager
def _opened(path: Path, where: Path, member: PackedAudio | None, content: str) -> Iterator[_Source]:
    """Yield a clip's encoded bytes. An error of the block counts only if they could be read and stayed the same.

    Raises BadClip with the reasons missing, read_error and moved.
    """
    try:
        with path.open("rb") as file:
            before = _State.of(file)
            source = _Source(io.BytesIO(_read_packed(file, path, where, member)) if member else file)
            if content and not member and _digest(file, before) != content:
                raise _moved(where, "file")
            try:
                yield source
            finally:
                if source.fault:
                    raise source.fault
                if not member and _State.of(file) != before:
                    raise _moved(where, "file")
    except (FileNotFoundError, NotADirectoryError):
        raise BadClip("missing", f"{path}: expected a file, found none") from None
    except IsADirectoryError:
        raise BadClip("missing", f"{path}: expected a file, found a folder") from None
    except OSError as error:
        found = error.strerror or str(error)
        advice = "see to the permissions, or to the disk, and run again"
        raise BadClip("read_error", f"{where}: expected a file that can be read, found: {found}; {advice}") from None


_digests: dict[_State, str] = {}  # of this process; the oldest first
_ogg_faults: dict[_State, OggFault | None] = {}  # the same


def _digest(file: io.BufferedReader, state: _State) -> str:
    """Return the digest of a file, which is read once for all of its clips."""
    if state not in _digests:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:32]
        file.seek(0)
        if _State.of(file) != state:
            return digest
        if len(_digests) == _REMEMBERED:
            del _digests[next(iter(_digests))]
        _digests[state] = digest
    return _digests[state]


def _read_packed(file: io.BufferedReader, path: Path, where: Path, member: PackedAudio) -> bytes:
    """Return the bytes of a member, checked against the manifest's digest."""
    if member.size > _LARGEST_MEMBER:
        raise BadClip("too_long", f"{where}: expected at most {_LARGEST_MEMBER} bytes, found {member.size}")
    in_parquet = path.suffix == PARQUET
    encoded = _read_row(path, where, member) if in_parquet else _read_member(file, where, member)
    if hashlib.sha256(encoded).hexdigest()[: len(member.content)] != member.content:
        raise _moved(where, "Parquet file" if in_parquet else "tar")
    return encoded


def _read_member(tar: io.BufferedReader, where: Path, member: PackedAudio) -> bytes:
    tar.seek(member.offset)
    encoded = tar.read(member.size)
    if len(encoded) < member.size:
        raise _truncated(where, f"{member.size} bytes from byte {member.offset}", f"{len(encoded)}: the tar was cut")
    return encoded


def _read_row(path: Path, where: Path, member: PackedAudio) -> bytes:
    try:
        encoded = read_row(path, member.offset)
    except CorpusError:  # it was a Parquet file with audio when it was listed
        encoded = None
    if encoded is None:
        raise _moved(where, "Parquet file")
    return encoded


def _moved(where: Path, what: str) -> BadClip:
    found = f"others: the {what} was changed; `dvc repro` lists it again"
    return BadClip("moved", f"{where}: expected the bytes that the manifest names, found {found}")


def _decode(source: _Source, path: Path, start: float, duration: float, max_duration: float) -> tuple[np.ndarray, int]:
    """Return the waveform asked for, mono, at its own rate, and the rate in Hz; see `decode`."""
    with _open_audio(source, path) as file:
        return _read(file, source, path, start, duration, max_duration), file.samplerate


@contextlib.contextmanager
def _open_audio(source: _Source, path: Path) -> Iterator[soundfile.SoundFile]:
    """Yield encoded audio as libsndfile opens it, by its content and not by its suffix; its errors name the file."""
    if source.size == 0:
        raise BadClip("empty", f"{path}: expected audio, found a file of 0 bytes")
    try:
        with soundfile.SoundFile(source) as file:
            yield file
    except (soundfile.SoundFileError, RuntimeError) as error:
        found = str(error).replace(repr(source), repr(str(path)))  # the memory address differs between runs
        raise BadClip("unreadable", f"{path}: expected WAV, FLAC, OGG or MP3, found: {found}") from None


def _require_audio(file: soundfile.SoundFile, path: Path) -> None:
    """Raise BadClip for a rate that no recording has, and for a header without samples."""
    if not _LOWEST_RATE <= file.samplerate <= _HIGHEST_RATE:
        expected = f"expected a rate of {_LOWEST_RATE} to {_HIGHEST_RATE} Hz"
        raise BadClip("unreadable", f"{path}: {expected}, found {file.samplerate} Hz")
    if file.frames <= 0:
        raise BadClip("empty", f"{path}: expected audio, found a header without samples")


def _read(
    file: soundfile.SoundFile,
    source: _Source,
    path: Path,
    start: float,
    duration: float,
    max_duration: float,
) -> np.ndarray:
    """Read the part asked for at the file's own rate and mix it down, block by block; see `decode`."""
    _require_audio(file, path)
    rate, num_frames = file.samplerate, file.frames
    first = round(start * rate)
    last = round((start + duration) * rate) if duration else num_frames
    if last - first > math.ceil(max_duration * rate):
        raise BadClip("too_long", f"{path}: expected at most {max_duration} s, found {(last - first) / rate:.1f} s")
    if first >= num_frames:
        raise BadClip("too_short", f"{path}: expected sound at {start} s, found the end at {num_frames / rate:.3f} s")
    # A segment that ends less than 1 ms after the file has a rounded end time; more means a truncated file.
    if last > num_frames + rate // 1000:
        raise _truncated(path, f"sound to {last / rate:.3f} s", f"the end at {num_frames / rate:.3f} s")
    last = min(last, num_frames)
    if file.format == "OGG":
        _require_pages(source, path)
    if not duration:
        _require_whole(file, path)
    if first:
        file.seek(first)
    mono = np.empty(last - first, dtype=np.float32)
    buffer = np.empty((min(_BLOCK, len(mono)), file.channels), dtype=np.float32)
    filled = 0
    while filled < len(mono):
        try:
            block = file.read(out=buffer[: len(mono) - filled])
        except soundfile.SoundFileError as error:
            raise _truncated(path, f"{len(mono)} samples, as its header says", f"{filled} before: {error}") from None
        if not len(block):
            raise _truncated(path, f"{len(mono)} samples, as its header says", filled)
        _mix(block, mono[filled : filled + len(block)])
        filled += len(block)
    return mono


def _mix(block: np.ndarray, mono: np.ndarray) -> None:
    """Write the mean of the channels of `block` (sample, channel) into `mono` (sample,).

    Channel by channel, since NumPy's mean over so short an axis takes 20 times as long (half the time of decoding FLAC).
    """
    np.copyto(mono, block[:, 0])
    for channel in range(1, block.shape[1]):
        mono += block[:, channel]
    if block.shape[1] > 1:
        mono /= np.float32(block.shape[1])


def _require_whole(file: soundfile.SoundFile, path: Path) -> None:
    """Raise BadClip for a truncated WAV, which libsndfile reads without an error."""
    short = _SHORT_WAV.search(file.extra_info) if file.format in ("WAV", "WAVEX", "RF64") else None
    if short and int(short[1]) not in _UNKNOWN_LENGTHS:
        raise _truncated(path, f"{short[1]} bytes of samples, as its header says", short[2])


def _require_pages(source: _Source, path: Path) -> None:
    """Raise BadClip for an Ogg file that has lost bytes, which libsndfile passes over without an error."""
    fault = source.ogg_fault()
    if fault and fault.cut:
        raise _truncated(path, "a last page that ends the stream (RFC 3533)", fault.found)
    if fault:
        expected = "pages that follow each other, each with its checksum (RFC 3533)"
        raise BadClip("damaged", f"{path}: expected {expected}, found {fault.found}")


def _truncated(path: Path, expected: str, found: object) -> BadClip:
    return BadClip("truncated", f"{path}: expected {expected}, found {found}")
