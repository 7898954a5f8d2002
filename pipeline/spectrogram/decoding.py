"""From a file to a waveform: one path for building spectrograms and for prediction.

Conventions: a waveform is mono float32, shape (sample,), in [-1, 1] for integer formats; `start` and `duration` are
seconds of the source. Mono is the mean of the channels. Other sample rates are resampled by soxr at quality HQ, and by
nothing else: another resampler is another feature.
"""

import math
import re
from pathlib import Path

import numpy as np
import soundfile
import soxr

RESAMPLING_QUALITY = "HQ"  # of soxr; rejects aliases to about 100 dB

_LOWEST_RATE, _HIGHEST_RATE = 8000, 192000  # Hz
_BLOCK = (
    1 << 18
)  # samples a channel; after each block soundfile seeks to where it is, and FLAC then decodes a frame again

# What libsndfile's log says of a WAV whose data chunk ends after the file; it then reads what there is, silently. A
# recorder that writes to a pipe cannot know the length and leaves all bits set: such a file is whole.
_SHORT_WAV = re.compile(r"^data *: (\d+) \(should be (\d+)\)", re.MULTILINE)
_UNKNOWN_LENGTHS = (0, 0x7FFFFFFF, 0xFFFFFFFF)

_LARGEST_OGG_PAGE = 27 + 255 + 255 * 255  # bytes


class BadClip(Exception):  # noqa: N818 - not a fault of the program: a fact about a clip
    """A clip that cannot be used: `reason` is one word for counting, `message` is for people."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason, self.message = reason, message
        super().__init__(reason, message)

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"


def decode(
    path: Path, *, start: float, duration: float, sample_rate: int, max_duration: float, min_samples: int = 1
) -> np.ndarray:
    """Return the waveform of `duration` seconds from `start` (0 = to the end), shape (sample,) float32 at `sample_rate`.

    Reads WAV, FLAC, OGG and MP3 at 8 to 192 kHz, of any depth and number of channels; only the part asked for is
    decoded. Raises BadClip with one of the reasons missing, unreadable, empty, truncated, too_short (fewer than
    `min_samples`, one frame of the front end), too_long (more than `max_duration` seconds), not_finite, silent.
    """
    if not path.is_file():
        raise BadClip("missing", f"{path}: expected a file, found {'a folder' if path.is_dir() else 'none'}")
    if path.stat().st_size == 0:
        raise BadClip("empty", f"{path}: expected audio, found a file of 0 bytes")
    try:
        with soundfile.SoundFile(path) as file:
            native_rate = file.samplerate
            waveform = _read(file, path, start, duration, max_duration)
    except (soundfile.SoundFileError, RuntimeError, OSError) as error:
        raise BadClip("unreadable", f"{path}: expected WAV, FLAC, OGG or MP3, found: {error}") from None
    if not np.isfinite(waveform).all():
        bad = int((~np.isfinite(waveform)).sum())
        raise BadClip("not_finite", f"{path}: expected finite samples, found {bad} NaN or infinite")
    if not waveform.any():
        raise BadClip("silent", f"{path}: expected sound, found {len(waveform)} samples that are all 0")
    if native_rate != sample_rate:
        waveform = soxr.resample(waveform, native_rate, sample_rate, RESAMPLING_QUALITY)
    if len(waveform) < min_samples:
        raise BadClip(
            "too_short", f"{path}: expected at least {min_samples} samples at {sample_rate} Hz, found {len(waveform)}"
        )
    return np.ascontiguousarray(waveform, dtype=np.float32)


def _read(file: soundfile.SoundFile, path: Path, start: float, duration: float, max_duration: float) -> np.ndarray:
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
    # A cut that ends after the file by less than 1 ms is a rounded table entry; more is a file that lost its end.
    if last > num_frames + rate // 1000:
        raise _truncated(path, f"sound to {last / rate:.3f} s", f"the end at {num_frames / rate:.3f} s")
    last = min(last, num_frames)
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

    Channel by channel: NumPy's mean over so short an axis takes 20 times as long, half as long as decoding FLAC.
    """
    np.copyto(mono, block[:, 0])
    for channel in range(1, block.shape[1]):
        mono += block[:, channel]
    if block.shape[1] > 1:
        mono /= np.float32(block.shape[1])


def _require_whole(file: soundfile.SoundFile, path: Path) -> None:
    """Raise BadClip for a cut WAV or OGG, which libsndfile reads to the cut as if nothing were missing."""
    short = _SHORT_WAV.search(file.extra_info) if file.format in ("WAV", "WAVEX", "RF64") else None
    if short and int(short[1]) not in _UNKNOWN_LENGTHS:
        raise _truncated(path, f"{short[1]} bytes of samples, as its header says", short[2])
    if file.format == "OGG":
        with path.open("rb") as raw:
            raw.seek(max(0, path.stat().st_size - 2 * _LARGEST_OGG_PAGE))
            tail = raw.read()
        _, _, page = tail.rpartition(b"OggS")  # then version, flags, 20 bytes, number of segments and their lengths
        ends = len(page) > 22 and page[1] & 4 and len(page) >= 23 + page[22] + sum(page[23 : 23 + page[22]])
        if not ends:
            raise _truncated(path, "a last page that ends the stream (RFC 3533)", "a stream without end")


def _truncated(path: Path, expected: str, found: object) -> BadClip:
    return BadClip("truncated", f"{path}: expected {expected}, found {found}")
