"""Decoding of phones', browsers' and cameras' formats by FFmpeg, through the optional package PyAV.

A file's first bytes decide how it is read: FFmpeg is told the container, and guesses none. Of its many containers some name
other files or addresses to read, and some take any bytes for sound; they are not among these.

Conventions: samples are (sample, channel) float32 in [-1, 1]. Samples that an encoder has put before the sound are left out
where the file says how many they are.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pipeline.spectrogram.sources import Part, Source

if TYPE_CHECKING:
    from av import AudioFrame

ADVICE = "PyAV reads it: `pip install 'av>=18'` (the extra sonolex[formats])"

_SIGNATURES = (  # pattern of the first bytes, name of FFmpeg's container, name for people
    (rb"....(ftyp|moov|mdat|wide|free|skip)", "mov", "MP4, M4A, 3GP or QuickTime"),
    (rb"\x1aE\xdf\xa3", "matroska", "WebM or Matroska"),
    (rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf", "WMA"),
    (rb"#!AMR", "amr", "AMR"),
    (rb"caff", "caf", "CAF"),
    (rb"RIFF....AVI ", "avi", "AVI"),
    (rb"RIFF....WAVE", "wav", "WAV"),
    (rb"FLV\x01", "flv", "FLV"),
    (rb"OggS", "ogg", "Ogg"),
    (rb"\x00\x00\x01\xba", "mpeg", "MPEG"),
    (rb"\x47.{187}\x47.{187}\x47", "mpegts", "MPEG transport stream"),
    (rb"\xff[\xf0\xf1\xf8\xf9]", "aac", "AAC"),
)

# Containers that state the duration of each stream, and of all together; the others' is an estimate.
_EXACT, _TOTAL = ("mov", "caf", "wav"), ("matroska", "flv", "asf", "avi")

_GRACE = 0.1  # seconds that a file may be shorter than its header says: coders work in frames of up to 64 ms


class Container(NamedTuple):
    """A container that FFmpeg reads."""

    name: str  # FFmpeg's
    title: str  # for people


class FFmpegError(Exception):
    """A file that FFmpeg cannot open or decode. `cut`: because its end is missing."""

    def __init__(self, found: str, *, cut: bool = False) -> None:
        self.cut = cut
        super().__init__(found)


def find_container(start: bytes) -> Container | None:
    """Return the container of a file by its first bytes (400 suffice); None where it is none of these."""
    for pattern, name, title in _SIGNATURES:
        if re.match(pattern, start, flags=re.DOTALL):
            return Container(name, title)
    return None


def has_ffmpeg() -> bool:
    """Return whether PyAV is installed."""
    try:
        import av  # noqa: F401
    except ImportError:
        return False
    return True


class FFmpegReader:
    """The first audio stream of a file, read forward. Its length is known once it has been read."""

    num_samples: int | None = None  # nobody knows it before

    def __init__(self, source: Source | Part, container: Container) -> None:
        """Open a file. Raises FFmpegError."""
        import av

        source.seek(0)
        self._source, self._container = source, container
        with _errors(av.error.FFmpegError):
            self._file = av.open(source, mode="r", format=container.name)
        if not self._file.streams.audio:
            self._file.close()
            raise FFmpegError("no audio stream")
        self._stream = self._file.streams.audio[0]
        try:
            self.rate: int = self._stream.rate
        except AttributeError:  # without a coder the stream has no such field
            self._file.close()
            raise FFmpegError("sound of an unknown coder") from None
        self.num_channels: int = self._stream.channels
        self._frames = self._decode()
        self._waiting = np.empty((0, self.num_channels), dtype=np.float32)
        self._read = 0  # samples

    def close(self) -> None:
        self._file.close()

    @property
    def stated_seconds(self) -> float | None:
        """Duration by the header, which may be an estimate; None where it says none."""
        if self._stream.duration and self._stream.time_base:
            return float(self._stream.duration * self._stream.time_base)
        return self._file.duration / 1e6 if self._file.duration else None

    def seek(self, sample: int) -> int:
        """Move to a sample, not before the last one read, and return the place: the end where it comes before."""
        while self._read < sample and len(self.read(min(sample - self._read, self.rate))):
            pass
        return self._read

    def read(self, count: int) -> np.ndarray:
        """Return the next `count` samples (sample, channel), fewer at the end. Raises FFmpegError."""
        blocks, found = [self._waiting], len(self._waiting)
        while found < count:
            block = next(self._frames, None)
            if block is None:
                break
            blocks.append(block)
            found += len(block)
        samples = np.concatenate(blocks)
        self._waiting = samples[count:]
        self._read += len(samples[:count])
        return samples[:count]

    def _decode(self) -> Iterator[np.ndarray]:
        """Yield the samples of every packet. Raises FFmpegError for a packet that cannot be decoded, and for a lost end."""
        import av

        # Packed, since PyAV looks for a frame's planes beyond the last of more than eight, in memory that is not theirs.
        resampler, decoded = av.AudioResampler(format="flt"), 0
        with _errors(av.error.FFmpegError):
            for frame in self._file.decode(self._stream):
                if frame.is_corrupt:
                    raise FFmpegError(f"a damaged packet after {decoded / self.rate:.2f} s")
                for block in _samples(resampler.resample(frame), self.rate, self.num_channels):
                    decoded += len(block)
                    yield block
        self._require_end(decoded / self.rate)

    def _require_end(self, seconds: float) -> None:
        """Raise FFmpegError where a header promises more sound."""
        stream, promised = self._stream, 0.0  # seconds
        if self._container.name in _EXACT and stream.duration and stream.time_base:
            promised = float(stream.duration * stream.time_base)
        elif self._container.name in _TOTAL and self._file.duration and not self._file.streams.video:
            promised = self._file.duration / 1e6
        if seconds < promised - _GRACE:
            raise FFmpegError(f"{seconds:.2f} s of {promised:.2f} s", cut=True)


def _samples(frames: "list[AudioFrame]", rate: int, num_channels: int) -> Iterator[np.ndarray]:
    """Yield frames as arrays. Raises FFmpegError where rate or channels change within a file."""
    for frame in frames:
        samples = frame.to_ndarray().reshape(frame.samples, -1)
        if (frame.sample_rate, samples.shape[1]) != (rate, num_channels):
            found = f"{samples.shape[1]} at {frame.sample_rate} Hz"
            raise FFmpegError(f"{num_channels} channels at {rate} Hz, and then {found}")
        yield samples


@contextlib.contextmanager
def _errors(kind: type[Exception]) -> Iterator[None]:
    """Raise the package's errors as FFmpegError."""
    try:
        yield
    except (kind, ValueError) as error:
        found = str(error).partition(": '")[0].replace("[Errno ", "[")
        raise FFmpegError(found) from None
