"""Windows: parts of equal length along a sound, which are predicted one by one and pooled.

Conventions: windows and hops are seconds of the source. A window holds the samples that `decode` reads for a clip of the
same start and duration, and is resampled as a clip of its own, so its scores are those of such a clip. The last window ends
with the sound; a sound that is shorter than a window is one window.
"""

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np

from pipeline.artifacts.clips import Link
from pipeline.artifacts.spectrogram import Mix
from pipeline.errors import SonolexError
from pipeline.evaluation.averaging import average_logits
from pipeline.spectrogram.decoding import ForwardReader, cancelling, is_silent, prepare_waveform
from pipeline.spectrogram.mixing import Mixer
from pipeline.spectrogram.sources import BadClip

Pool: TypeAlias = Literal["mean", "max"]

SHORTEST_HOP = 0.001  # seconds
SECONDS_AT_ONCE = 160.0  # of windows that are in memory at once, at the file's rate


@dataclass(frozen=True)
class Windowing:
    """Cutting of a sound into windows, and pooling of their scores."""

    window: float  # seconds
    hop: float  # seconds between the starts of windows; above `window`, sound between windows is not heard
    pool: Pool = "mean"  # of the probabilities of windows

    @classmethod
    def of(cls, window: float, hop: float | None, pool: str, *, shortest: float) -> "Windowing":
        """Return the windowing of these settings; a hop of None is half a window.

        Raises SonolexError for settings that cannot be, and for windows below `shortest` seconds, a frame of the front end.
        """
        hop = window / 2 if hop is None else hop
        if not shortest <= window < float("inf"):
            raise SonolexError(
                f"window: expected seconds, at least {shortest:g} for one frame of this model, found {window:g}; windows as "
                "long as the training clips suit a model best"
            )
        if not SHORTEST_HOP <= hop < float("inf"):
            raise SonolexError(
                f"hop: expected seconds, at least {SHORTEST_HOP:g}, found {hop:g}; {window / 2:g} is half a window"
            )
        if pool not in get_args(Pool):
            raise SonolexError(f"pool: expected one of {', '.join(get_args(Pool))}, found {pool!r}")
        return cls(window, hop, "max" if pool == "max" else "mean")

    def at_once(self, most: int) -> int:
        """Return how many windows to read at once, `most` or fewer of long ones."""
        return max(1, min(most, int(SECONDS_AT_ONCE / self.window)))


class Window(NamedTuple):
    """A part of a sound."""

    start: float  # seconds
    end: float  # seconds
    samples: np.ndarray  # (sample,) float32 at the source's rate

    def name_in(self, source: str) -> str:
        """Return what messages call the window."""
        return f"{source}, {self.start:.2f} s to {self.end:.2f} s"

    def waveform(self, rate: int, *, sample_rate: int, min_samples: int, source: str) -> np.ndarray:
        """Return the waveform (sample,) at `sample_rate` Hz; `rate` is the source's.

        Silence is no fault of a window; a file that is all silent fails as a whole. Raises BadClip as `prepare_waveform`.
        """
        where = self.name_in(source)
        sizes = {"sample_rate": sample_rate, "min_samples": min_samples}
        return prepare_waveform(self.samples, rate, **sizes, where=where, allow_silence=True)


def window_bounds(num_samples: int, rate: int, windowing: Windowing) -> list[tuple[int, int]]:
    """Return the first sample of every window, and the sample after its last, of a sound of `rate` Hz."""
    bounds: list[tuple[int, int]] = []
    while not bounds or bounds[-1][1] < num_samples:
        start = len(bounds) * windowing.hop
        first, last = round(start * rate), round((start + windowing.window) * rate)
        if last > num_samples:
            start = num_samples / rate - windowing.window
            first, last = max(0, round(start * rate)), num_samples
        bounds.append((first, last))
    return bounds


def array_windows(samples: np.ndarray, rate: int, windowing: Windowing) -> list[Window]:
    """Return the windows of an array (sample,) of `rate` Hz, as views."""
    return [
        Window(first / rate, last / rate, samples[first:last])
        for first, last in window_bounds(len(samples), rate, windowing)
    ]


class WindowReader:
    """Windows of a file, read forward: in memory are a window and a block. Several threads may take windows."""

    def __init__(self, path: Path, windowing: Windowing, *, mix: Mix = "mean", allow_silence: bool = False) -> None:
        """Open a file. Raises BadClip where it cannot be used."""
        self._mix: Mix = mix
        self._path, self._reader = path, ForwardReader(path)
        self.rate = self._reader.rate  # Hz
        self._waiting = deque(window_bounds(self._reader.num_samples, self.rate, windowing))
        self.num_windows = len(self._waiting)
        self.seconds = self._reader.num_samples / self.rate
        self._buffer = np.empty((0, self._reader.num_channels), dtype=np.float32)  # (sample, channel)
        self._first = 0  # place of its first sample in the file
        self._heard = allow_silence  # sound in any window
        self._cancelling = False  # channels in any window
        self._fault: BadClip | None = None  # that every thread is told
        self._lock = threading.Lock()

    def take(self, count: int) -> list[Window]:
        """Return the next `count` windows, fewer at the end. Raises BadClip where the file cannot be read, or is silent."""
        with self._lock:
            if self._fault is None:
                try:
                    return self._take(count)
                except BadClip as error:
                    self._fault = error
                    self._reader.close()
            raise self._fault

    def close(self) -> None:
        """Close the file, of which no window is wanted any more."""
        self._reader.close()

    def _take(self, count: int) -> list[Window]:
        windows = [self._window(*self._waiting.popleft()) for _ in range(min(count, len(self._waiting)))]
        if not self._waiting:
            self._reader.close()
            if not self._heard and self._cancelling:
                raise cancelling(self._path)
            if not self._heard:
                raise BadClip("silent", f"{self._path}: expected sound, found samples that are all the same")
        return windows

    def _window(self, first: int, last: int) -> Window:
        while self._first + len(self._buffer) < last:
            block = self._reader.read()
            kept = self._buffer[max(0, first - self._first) :]
            self._first += len(self._buffer) - len(kept)
            self._buffer = np.concatenate([kept, block])
        mixer = Mixer(self._mix)
        mixer.add(self._buffer[first - self._first : last - self._first].copy())
        samples = mixer.mixed()
        self._cancelling |= mixer.cancels
        self._heard = self._heard or not (mixer.cancels or is_silent(samples))
        return Window(first / self.rate, last / self.rate, samples)


def pool_logits(logits: np.ndarray, link: Link, pool: Pool) -> np.ndarray:
    """Return logits (class,) float32 of a sound from those of its windows (window, class).

    "mean": those whose probabilities are the mean of the windows'. "max": logarithms of each class's highest probability
    (softmax), or each class's highest logit.
    """
    if pool == "mean":
        return np.asarray(average_logits(list(logits[:, None]), link)[0])
    if link == "softmax":
        logits = logits - np.logaddexp.reduce(logits.astype(np.float64), axis=1, keepdims=True)
    return np.asarray(logits.max(axis=0), dtype=np.float32)


def pool_scores(scores: np.ndarray, pool: Pool) -> np.ndarray:
    """Return the probabilities (class,) of a sound from those of its windows (window, class)."""
    return np.asarray(scores.mean(axis=0) if pool == "mean" else scores.max(axis=0))


def segments(windows: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the part of time that each window (start, end) stands for, so that no two parts overlap.

    An overlap is divided in its middle; gaps between windows remain.
    """
    parts = list(windows)
    for number in range(len(parts) - 1):
        (start, end), (following, last) = parts[number], parts[number + 1]
        if following < end:
            middle = (following + end) / 2
            parts[number], parts[number + 1] = (start, middle), (middle, last)
    return parts
