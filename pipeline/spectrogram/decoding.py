"""Decoding of audio files to waveforms, for building spectrograms and for prediction alike.

Conventions: a waveform is mono float32, shape (sample,), in [-1, 1] for integer formats; `start` and `duration` are seconds
of the source. Mono is the mean of the channels. Other sample rates are resampled by soxr at quality HQ; another resampler
would change the features.
"""

import hashlib
import io
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import soundfile
import soxr

from pipeline.artifacts.clips import ClipRecord

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

# A member of a tar is read into memory as a whole; ten seconds of the largest format take 60 MB.
_LARGEST_MEMBER = 1 << 30  # bytes

_LARGEST_OGG_PAGE = 27 + 255 + 255 * 255  # bytes


class BadClip(Exception):  # noqa: N818 - not a fault of the program but a property of a clip
    """A clip that cannot be used: `reason` is one word for counting, `message` is for people."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason, self.message = reason, message
        super().__init__(reason, message)

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


@dataclass(frozen=True, slots=True)
class TarMember:
    """Place of a clip's bytes in a tar file, from the manifest."""

    name: str  # for messages
    offset: int  # bytes
    size: int  # bytes
    content: str  # digest of the bytes, to detect a tar that was packed again

    @classmethod
    def of(cls, row: ClipRecord) -> Self | None:
        """Return the member of a manifest row, or None when its clip has a file of its own."""
        return cls(row["member"], row["offset"], row["size"], row["content"]) if row["member"] else None


def decode(
    path: Path,
    *,
    start: float,
    duration: float,
    sample_rate: int,
    max_duration: float,
    min_samples: int = 1,
    member: TarMember | None = None,
) -> np.ndarray:
    """Return the waveform of `duration` seconds from `start` (0 = to the end), shape (sample,) float32 at `sample_rate`.

    Reads WAV, FLAC, OGG and MP3 at 8 to 192 kHz, of any depth and number of channels, from a file or a `member` of a tar;
    only the part asked for is decoded. Raises BadClip with one of the reasons missing, unreadable, empty, truncated, moved
    (the tar has other bytes at the member's place), too_short (fewer than `min_samples`, one frame of the front end),
    too_long (more than `max_duration` seconds), not_finite, silent.
    """
    if not path.is_file():
        raise BadClip("missing", f"{path}: expected a file, found {'a folder' if path.is_dir() else 'none'}")
    encoded: Path | io.BytesIO = path
    if member is not None:
        encoded, path = _read_member(path, member), path / member.name  # from here on only for messages
    if _num_bytes(encoded) == 0:
        raise BadClip("empty", f"{path}: expected audio, found a file of 0 bytes")
    try:
        with soundfile.SoundFile(encoded) as file:
            native_rate = file.samplerate
            waveform = _read(file, encoded, path, start, duration, max_duration)
    except (soundfile.SoundFileError, RuntimeError, OSError) as error:
        found = str(error).replace(repr(encoded), repr(str(path)))  # the memory address differs between runs
        raise BadClip("unreadable", f"{path}: expected WAV, FLAC, OGG or MP3, found: {found}") from None
    return prepare_waveform(waveform, native_rate, sample_rate=sample_rate, min_samples=min_samples, where=str(path))


class ForwardReader:
    """A file that is read forward, block by block, at its own rate: of a long one only a block is in memory.

    The samples are those that `decode` reads, before resampling. Raises BadClip as `decode` does, from the method that finds
    the fault: a file that is cut short may be noticed only where it ends.
    """

    def __init__(self, path: Path) -> None:
        """Open a file, and read its header."""
        if not path.is_file():
            raise BadClip("missing", f"{path}: expected a file, found {'a folder' if path.is_dir() else 'none'}")
        if not path.stat().st_size:
            raise BadClip("empty", f"{path}: expected audio, found a file of 0 bytes")
        self._path, self._read = path, 0
        try:
            self._file = soundfile.SoundFile(path)
        except (soundfile.SoundFileError, RuntimeError, OSError) as error:
            raise BadClip("unreadable", f"{path}: expected WAV, FLAC, OGG or MP3, found: {error}") from None
        self.rate: int = self._file.samplerate  # Hz
        self.num_samples: int = self._file.frames  # as its header says
        try:
            self._require_sound()
        except BadClip:
            self.close()
            raise

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
        self._file.close()

    def _require_sound(self) -> None:
        if not _LOWEST_RATE <= self.rate <= _HIGHEST_RATE:
            expected = f"expected a rate of {_LOWEST_RATE} to {_HIGHEST_RATE} Hz"
            raise BadClip("unreadable", f"{self._path}: {expected}, found {self.rate} Hz")
        if self.num_samples <= 0:
            raise BadClip("empty", f"{self._path}: expected audio, found a header without samples")
        _require_whole(self._file, self._path, self._path)

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


def _read_member(path: Path, member: TarMember) -> io.BytesIO:
    """Return the bytes of a member, checked against the manifest's digest."""
    where = path / member.name
    if member.size > _LARGEST_MEMBER:
        raise BadClip("too_long", f"{where}: expected at most {_LARGEST_MEMBER} bytes, found {member.size}")
    try:
        with path.open("rb") as tar:
            tar.seek(member.offset)
            encoded = tar.read(member.size)
    except OSError as error:
        raise BadClip("unreadable", f"{where}: expected {member.size} bytes, found: {error}") from None
    if len(encoded) < member.size:
        raise _truncated(where, f"{member.size} bytes from byte {member.offset}", f"{len(encoded)}: the tar was cut")
    if hashlib.sha256(encoded).hexdigest()[: len(member.content)] != member.content:
        found = "others: the tar was changed; `dvc repro corpus` finds its members again"
        raise BadClip("moved", f"{where}: expected the bytes that the manifest names, found {found}")
    return io.BytesIO(encoded)


def _num_bytes(encoded: Path | io.BytesIO) -> int:
    return encoded.stat().st_size if isinstance(encoded, Path) else encoded.getbuffer().nbytes


def _tail(encoded: Path | io.BytesIO, size: int) -> bytes:
    if isinstance(encoded, io.BytesIO):
        return bytes(encoded.getbuffer()[-size:])
    with encoded.open("rb") as raw:
        raw.seek(max(0, encoded.stat().st_size - size))
        return raw.read()


def _read(
    file: soundfile.SoundFile,
    encoded: Path | io.BytesIO,
    path: Path,
    start: float,
    duration: float,
    max_duration: float,
) -> np.ndarray:
    """Read the part asked for at the file's own rate and mix it down, block by block; see `decode`."""
    rate, num_frames = file.samplerate, file.frames
    if not _LOWEST_RATE <= rate <= _HIGHEST_RATE:
        raise BadClip("unreadable", f"{path}: expected a rate of {_LOWEST_RATE} to {_HIGHEST_RATE} Hz, found {rate} Hz")
    if num_frames <= 0:
        raise BadClip("empty", f"{path}: expected audio, found a header without samples")
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
    if not duration:
        _require_whole(file, encoded, path)
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


def _require_whole(file: soundfile.SoundFile, encoded: Path | io.BytesIO, path: Path) -> None:
    """Raise BadClip for a truncated WAV or OGG, which libsndfile reads without an error."""
    short = _SHORT_WAV.search(file.extra_info) if file.format in ("WAV", "WAVEX", "RF64") else None
    if short and int(short[1]) not in _UNKNOWN_LENGTHS:
        raise _truncated(path, f"{short[1]} bytes of samples, as its header says", short[2])
    if file.format == "OGG":
        _, _, page = _tail(encoded, 2 * _LARGEST_OGG_PAGE).rpartition(
            b"OggS"
        )  # then version, flags, 20 bytes, number of segments and their lengths
        ends = len(page) > 22 and page[1] & 4 and len(page) >= 23 + page[22] + sum(page[23 : 23 + page[22]])
        if not ends:
            raise _truncated(path, "a last page that ends the stream (RFC 3533)", "a stream without end")


def _truncated(path: Path, expected: str, found: object) -> BadClip:
    return BadClip("truncated", f"{path}: expected {expected}, found {found}")
