"""Survey of a corpus before its first run: headers and sound of a sample of its clips, and files that are copies of others.

A sample is drawn by hash of the clip ids. Copies are found by size first, then by a block of each file, and only then by
whole content, so that few files are read.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from pipeline.artifacts.files import file_digest
from pipeline.artifacts.spectrogram import Mix
from pipeline.corpora.base import AdapterParams, CorpusListing
from pipeline.corpora.registry import list_corpus
from pipeline.duplicates.searching import Pair, find_pairs_among
from pipeline.spectrogram.decoding import decode
from pipeline.spectrogram.front_end import FrontEnd
from pipeline.spectrogram.headers import ClipPlace, Header, clip_seconds, draw_clips, packed, read_header, suffix_of
from pipeline.spectrogram.registry import build_front_end
from pipeline.spectrogram.settings import SpectrogramParams
from pipeline.spectrogram.sources import BadClip

HEADERS = 2000  # clips whose headers are read
DECODED = 300  # clips that are decoded
COMPARED = 20_000  # files that are looked at for copies

_HEARD = 30.0  # seconds of a decoded clip that are compared with others
_BLOCK = 4096  # bytes from the middle of a file, by which most that differ are told apart
_THREADS = 4  # reading waits for the disk more than for the processor


class _Row(ClipPlace):
    """Row of a listing, as far as a survey reads it."""

    clip_id: str
    labels: list[str]


T = TypeVar("T")
R = TypeVar("R")

Advance = Callable[[str, int, int], None]  # told what is done, how much of it, and of how much


@dataclass(frozen=True)
class Sound:
    """A clip of the sample."""

    clip_id: str
    labels: tuple[str, ...]
    suffix: str  # of its file, such as WAV
    header: Header | None  # None = it cannot be read
    seconds: float | None  # of the clip; None = not known

    @property
    def encoding(self) -> str:
        """Container and encoding."""
        if self.header is None:
            return f"{self.suffix} without a header that can be read"
        return f"{self.header.container} {self.header.encoding}"

    @property
    def format(self) -> str:
        """Container, encoding, rate and channels."""
        if self.header is None:
            return self.encoding
        return f"{self.encoding} {self.header.rate / 1000:g} kHz {describe_channels(self.header.channels)}"


@dataclass(frozen=True)
class Comparison:
    """Copies among files, or members of files, and how many were compared."""

    num_files: int = 0
    num_suspects: int = 0  # files that have the size of another
    num_compared: int = 0  # of the suspects
    copies: list[list[str]] = field(default_factory=list)  # clip ids whose files have the same content


@dataclass(frozen=True)
class Survey:
    """What was found."""

    listing: CorpusListing
    clips: pa.Table  # of the listing
    sounds: list[Sound]  # a sample
    num_decoded: int  # clips
    faults: dict[str, list[str]] = field(default_factory=dict)  # reason -> messages, of the decoded clips
    comparison: Comparison = field(default_factory=Comparison)
    alike: list[Pair] = field(default_factory=list)  # near-duplicates among the decoded clips

    @property
    def copies(self) -> list[list[str]]:
        """Clip ids whose files have the same content, by group."""
        return self.comparison.copies

    @cached_property
    def seconds(self) -> np.ndarray:
        """Durations of the sampled clips, ascending."""
        return np.sort(np.array([sound.seconds for sound in self.sounds if sound.seconds is not None]))

    @cached_property
    def class_sizes(self) -> Counter[str]:
        """Clips of each class, those without one included."""
        counts = Counter(dict.fromkeys(self.listing.classes, 0))
        counts.update(label for labels in self.clips["labels"].to_pylist() for label in labels)
        return counts

    def groups_of_classes(self) -> dict[str, int]:
        """Return the groups of each class, as folds are drawn: a clip without one is its file's, copies are of one group."""
        joined = {clip: group[0] for group in self.copies for clip in group}
        found: dict[str, set[str]] = {name: set() for name in self.listing.classes}
        columns = (self.clips[name].to_pylist() for name in ("clip_id", "group", "source", "labels"))
        for clip, group, source, labels in zip(*columns, strict=True):
            for label in labels:
                found.setdefault(label, set()).add(group or joined.get(clip, source))
        return {name: len(groups) for name, groups in found.items()}


def survey(params: AdapterParams, frames: SpectrogramParams, threshold: float, advance: Advance) -> Survey:
    """List a corpus and look at a sample of its clips; clips whose frames correlate by `threshold` are near-duplicates.

    Raises CorpusError where the corpus cannot be listed.
    """
    advance("list clips", 0, 1)
    listing = list_corpus(params)
    clips = listing.table()
    sample = draw_clips(clips, HEADERS)
    rows = sample.to_pylist()
    headers = _each(lambda row: read_header(row, params.root), rows, "read headers", advance)
    some = draw_clips(sample, DECODED).to_pylist()
    front_end = build_front_end(frames.front_end)
    decoded = _each(lambda row: _decode(row, params, front_end, frames.mix), some, "decode clips", advance)
    faults: dict[str, list[str]] = defaultdict(list)
    for result in decoded:
        if isinstance(result, BadClip):
            faults[result.reason].append(result.message)
    heard = {row["clip_id"]: result for row, result in zip(some, decoded, strict=True) if isinstance(result, _Heard)}
    sounds = [_sound(row, header, heard.get(row["clip_id"])) for row, header in zip(rows, headers, strict=True)]
    comparison = find_copies(clips, params.root, advance)
    log_mel = {clip: result.log_mel for clip, result in heard.items()}
    alike = find_pairs_among(log_mel, front_end.metadata, threshold) if log_mel else []
    return Survey(listing, clips, sounds, len(some), dict(faults), comparison, alike)


def find_copies(clips: pa.Table, root: Path, advance: Advance) -> Comparison:
    """Find the files or members with the same content.

    Of a file with several clips the last one stands for all. Of more than COMPARED files with a size that others have, the
    first are looked into.
    """
    ids = dict(zip(clips["source"].to_pylist(), clips["clip_id"].to_pylist(), strict=True))
    if any(clips["member"].to_pylist()):
        pairs = zip(clips["content"].to_pylist(), clips["clip_id"].to_pylist(), strict=True)
        return Comparison(len(clips), len(clips), len(clips), _alike(pair for pair in pairs if pair[0]))
    sizes = _each(lambda source: _size(root / source), list(ids), "compare sizes", advance)
    groups = _alike((size, source) for size, source in zip(sizes, ids, strict=True) if size)
    files = [source for group in groups for source in group]
    num_suspects, files = len(files), files[:COMPARED]
    blocks = _each(lambda source: _middle(root / source), files, "compare files", advance)
    suspects = [source for group in _alike(zip(blocks, files, strict=True)) for source in group]
    digests = _each(lambda source: _digest(root / source), suspects, "compare files", advance)
    found = _alike(pair for pair in zip(digests, suspects, strict=True) if pair[0])
    copies = [[ids[source] for source in group] for group in found]
    return Comparison(len(ids), num_suspects, len(files), copies)


def describe_channels(number: int) -> str:
    """Return a number of channels in words."""
    return {1: "mono", 2: "stereo"}.get(number, f"of {number} channels")


class _Heard(NamedTuple):
    """A decoded clip."""

    seconds: float
    log_mel: np.ndarray  # (frame, mel) float32, of its first _HEARD seconds


def _sound(row: _Row, header: Header | None, heard: _Heard | None) -> Sound:
    """Return a clip with its duration by the header, or else as it was decoded, if it was."""
    seconds = clip_seconds(row, header)
    if seconds is None and heard is not None:
        seconds = heard.seconds
    return Sound(row["clip_id"], tuple(row["labels"]), suffix_of(row), header, seconds)


def _decode(row: _Row, params: AdapterParams, front_end: FrontEnd, mix: Mix) -> _Heard | BadClip:
    """Return a clip as it is heard, or why it cannot be used."""
    rate = front_end.metadata["sample_rate"]
    try:
        waveform = decode(
            params.root / row["source"],
            start=row["start"],
            duration=row["duration"],
            sample_rate=rate,
            max_duration=params.max_duration,
            min_samples=front_end.min_samples,
            member=packed(row),
            mix=mix,
        )
    except BadClip as error:
        return error
    return _Heard(len(waveform) / rate, front_end.log_mel(waveform[: int(_HEARD * rate)]))


def _alike(pairs: Iterable[tuple[object, str]]) -> list[list[str]]:
    """Return the names that share a key, by key, in the order of their first."""
    found: dict[object, list[str]] = defaultdict(list)
    for key, name in pairs:
        found[key].append(name)
    return [names for names in found.values() if len(names) > 1]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _middle(path: Path) -> tuple[int, bytes]:
    """Return a file's size and a block of it; an empty block where it cannot be read."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            file.seek(max(0, size // 2 - _BLOCK // 2))
            return size, file.read(_BLOCK)
    except OSError:
        return 0, b""


def _digest(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError:
        return ""


def _each(function: Callable[[T], R], items: Sequence[T], what: str, advance: Advance) -> list[R]:
    """Return the results for all items, in their order, by threads."""
    results: list[R] = []
    with ThreadPoolExecutor(_THREADS) as threads:
        for number, result in enumerate(threads.map(function, items)):
            if number % 16 == 0:
                advance(what, number, len(items))
            results.append(result)
    return results
