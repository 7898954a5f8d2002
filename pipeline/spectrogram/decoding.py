"""Decoding of audio files to waveforms, for building spectrograms and for prediction alike.

Conventions: a waveform is mono float32, shape (sample,), in [-1, 1] for integer formats; `start` and `duration` are seconds
of the source. Mono is the mean of the channels, or another mix (`mixing.py`). Other sample rates are resampled by soxr at
quality HQ; another resampler would change the features.
"""

import contextlib
import math
from pathlib import Path
from typing import NamedTuple, NotRequired, TypedDict

import numpy as np
import soxr
from typing_extensions import Unpack

from pipeline.artifacts.spectrogram import Mix
from pipeline.spectrogram.mixing import Mixer
from pipeline.spectrogram.readers import AudioReader, DecodingError, open_reader
from pipeline.spectrogram.sources import BadClip, PackedAudio, open_source

RESAMPLING_QUALITY = "HQ"  # of soxr; rejects aliases to about 100 dB

_BLOCK = (
    1 << 18
)  # samples per channel; after each block soundfile seeks to its position, and FLAC decodes a frame again


class Decoding(TypedDict):
    """Keywords of `decode`."""

    start: float
    duration: float
    sample_rate: int
    max_duration: float
    min_samples: NotRequired[int]
    member: NotRequired[PackedAudio | None]
    content: NotRequired[str]
    mix: NotRequired[Mix]
    allow_silence: NotRequired[bool]


class Decoded(NamedTuple):
    """A decoded clip, and what its file was like."""

    waveform: np.ndarray  # (sample,) float32, at the rate asked for
    rate: int  # of the file, Hz
    num_channels: int  # of the file


def decode(path: Path, **how: Unpack[Decoding]) -> np.ndarray:
    """Return the waveform alone; see `decode_clip`."""
    return decode_clip(path, **how).waveform


def decode_clip(
    path: Path,
    *,
    start: float,
    duration: float,
    sample_rate: int,
    max_duration: float,
    min_samples: int = 1,
    member: PackedAudio | None = None,
    content: str = "",
    mix: Mix = "mean",
    allow_silence: bool = False,
) -> Decoded:
    """Return the waveform of `duration` seconds from `start` (0 = to the end), shape (sample,) float32 at `sample_rate`.

    Reads what libsndfile and FFmpeg do (docs/corpora.md) at 1 to 384 kHz, of any depth and number of channels, from a file,
    or from a `member` of a tar or Parquet file; only the part asked for is decoded, and what is before it where the length
    is unknown. `content` is the digest that a file must have, empty = any; a member has its own.

    Raises BadClip with one of the reasons missing, read_error (the file is there and cannot be read: no permission, a
    failing disk), moved (it has other bytes than the manifest names), unreadable (no audio), empty, truncated, damaged (in
    the middle), too_short (fewer than `min_samples`, one frame of the front end), too_long (more than `max_duration`
    seconds), not_finite, cancelling (channels), silent (unless `allow_silence`). The first three say nothing about the
    content, and may pass.
    """
    where = path / member.name if member else path  # for messages
    with open_source(path, where, member, content) as source, open_reader(source, where, whole=not duration) as reader:
        mixer = Mixer(mix)
        _read(reader, mixer, where, start, duration, max_duration)
        native_rate, num_channels = reader.rate, reader.num_channels
    if mixer.cancels:
        raise cancelling(where)
    waveform = prepare_waveform(
        mixer.mixed(),
        native_rate,
        sample_rate=sample_rate,
        min_samples=min_samples,
        where=str(where),
        allow_silence=allow_silence,
    )
    return Decoded(waveform, native_rate, num_channels)


class ForwardReader:
    """A file that is read forward, block by block, at its own rate: of a long one only a block is in memory.

    The samples are those that `decode` reads, before mixing and resampling. A file whose length is unknown is decoded twice.
    Raises BadClip as `decode` does, from the method that finds the fault: a file that is cut short may be noticed only where
    it ends.
    """

    def __init__(self, path: Path) -> None:
        """Open a file, and read its header."""
        self._path, self._read = path, 0
        with contextlib.ExitStack() as opened:
            source = opened.enter_context(open_source(path, path, None, ""))
            self._reader = opened.enter_context(open_reader(source, path, whole=True))
            self.rate = self._reader.rate  # Hz
            self.num_channels = self._reader.num_channels
            known = self._reader.num_samples
            self.num_samples = _count(path) if known is None else known
            self._opened = opened.pop_all()

    def read(self) -> np.ndarray:
        """Return the next samples (sample, channel) float32. Empty at the end of the file."""
        wanted = min(_BLOCK, self.num_samples - self._read)
        if not wanted:
            return np.empty((0, self.num_channels), dtype=np.float32)
        try:
            block = self._reader.read(wanted)
        except DecodingError as error:
            raise _cut_short(self._path, self.num_samples, f"{self._read} before: {error}") from None
        if not len(block) and wanted <= _few(self.rate):
            block = np.zeros((wanted, self.num_channels), dtype=np.float32)
        if not len(block):
            raise _cut_short(self._path, self.num_samples, self._read)
        self._read += len(block)
        return block

    def close(self) -> None:
        self._opened.close()


def _count(path: Path) -> int:
    """Return the number of samples of a file that does not say it. Raises BadClip where there are none."""
    count = 0
    with open_source(path, path, None, "") as source, open_reader(source, path, whole=True) as reader:
        while found := len(_next(reader, _BLOCK, path, count)):
            count += found
    if not count:
        raise BadClip("empty", f"{path}: expected audio, found a header without samples")
    return count


def prepare_waveform(
    waveform: np.ndarray, rate: int, *, sample_rate: int, min_samples: int, where: str, allow_silence: bool = False
) -> np.ndarray:
    """Return a waveform (sample,) of `rate` Hz at `sample_rate` Hz, float32.

    Raises BadClip with one of the reasons not_finite, silent (unless `allow_silence`), too_short; `where` names the sound.
    """
    if not np.isfinite(waveform).all():
        bad = int((~np.isfinite(waveform)).sum())
        raise BadClip("not_finite", f"{where}: expected finite samples, found {bad} NaN or infinite")
    if not allow_silence and is_silent(waveform):
        found = f"{len(waveform)} samples that are all {waveform[0]:g}" if len(waveform) else "no samples"
        raise BadClip("silent", f"{where}: expected sound, found {found}")
    if rate != sample_rate:
        waveform = soxr.resample(waveform, rate, sample_rate, RESAMPLING_QUALITY)
    if len(waveform) < min_samples:
        found = f"found {len(waveform)}"
        raise BadClip("too_short", f"{where}: expected at least {min_samples} samples at {sample_rate} Hz, {found}")
    return np.ascontiguousarray(waveform, dtype=np.float32)


def is_silent(waveform: np.ndarray) -> bool:
    """Return whether all samples are the same: 0, or a constant (DC), of which a front end hears nothing."""
    if not len(waveform) or waveform[0] != waveform[len(waveform) // 2]:  # of most sounds the two differ
        return not len(waveform)
    return bool((waveform == waveform[0]).all())


def cancelling(where: object) -> BadClip:
    """Return the error for channels whose mean is nothing."""
    found = "channels that cancel each other: the mean of left and right is silent"
    return BadClip(
        "cancelling", f"{where}: expected sound, found {found}; set spectrogram.mix to left, right or loudest"
    )


def _read(reader: AudioReader, mixer: Mixer, path: Path, start: float, duration: float, max_duration: float) -> None:
    """Read the part asked for at the file's own rate, block by block, and mix it; see `decode`."""
    rate, num_samples = reader.rate, reader.num_samples
    first = round(start * rate)
    last = round((start + duration) * rate) if duration else num_samples
    most = math.ceil(max_duration * rate)
    if last is not None and last - first > most:
        raise BadClip("too_long", f"{path}: expected at most {max_duration} s, found {(last - first) / rate:.1f} s")
    if num_samples is not None:
        last = _within(path, rate, first, last, num_samples)
    if first:
        reached = reader.seek(first)
        if reached < first:
            _within(path, rate, first, last, reached)
    found = _read_blocks(reader, mixer, path, most + 1 if last is None else last - first)
    if last is None and found > most:
        raise BadClip("too_long", f"{path}: expected at most {max_duration} s, found more")
    if num_samples is None:
        _within(path, rate, first, last, first + found)
    elif last is not None and found < last - first - _few(rate):
        raise _cut_short(path, last - first, found)


def _within(path: Path, rate: int, first: int, last: int | None, num_samples: int) -> int:
    """Return the end of a part of a file of `num_samples`. Raises BadClip where it begins or ends behind the file."""
    if first >= num_samples:
        if not first:
            raise BadClip("empty", f"{path}: expected audio, found a header without samples")
        found = f"the end at {num_samples / rate:.3f} s"
        raise BadClip("too_short", f"{path}: expected sound at {first / rate:.3f} s, found {found}")
    if last is not None and last > num_samples + _few(rate):
        found = f"the end at {num_samples / rate:.3f} s"
        raise BadClip("truncated", f"{path}: expected sound to {last / rate:.3f} s, found {found}")
    return num_samples if last is None else min(last, num_samples)


def _few(rate: int) -> int:
    """Return how many samples may be missing: a table's times are rounded, and some headers count a few too many."""
    return rate // 1000


def _read_blocks(reader: AudioReader, mixer: Mixer, path: Path, count: int) -> int:
    """Mix the next `count` samples, fewer where the file ends, and return how many there were."""
    filled = 0
    while filled < count and len(block := _next(reader, min(_BLOCK, count - filled), path, filled)):
        mixer.add(block)
        filled += len(block)
    return filled


def _next(reader: AudioReader, count: int, path: Path, before: int) -> np.ndarray:
    """Return the next `count` samples, fewer at the end. Raises BadClip where they cannot be decoded."""
    try:
        return reader.read(count)
    except DecodingError as error:
        expected = "samples to the end of the file" if reader.num_samples is None else "samples, as its header says"
        raise BadClip("truncated", f"{path}: expected {expected}, found {before} before: {error}") from None


def _cut_short(path: Path, expected: int, found: object) -> BadClip:
    return BadClip("truncated", f"{path}: expected {expected} samples, as its header says, found {found}")
