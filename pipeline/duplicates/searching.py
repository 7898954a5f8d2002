"""Search for near-duplicates among all clips of a spectrogram: identical frames, and landmarks confirmed by correlation.

Frames are read twice: once all, for digests and landmarks, and once those of the pairs to compare. A lossless copy (another
container, more chunks, more bits) decodes to the same samples, so its frames are the same to the bit; of clips with the same
frames one stands for all. Memory: a few batches of clips, and the landmarks.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pipeline.artifacts.spectrogram import FrontEndMetadata, Spectrogram, SpectrogramMetadata
from pipeline.duplicates.bands import Scale, smooth_bands
from pipeline.duplicates.candidates import find_candidates
from pipeline.duplicates.correlation import Match, correlate
from pipeline.duplicates.landmarks import find_landmarks
from pipeline.execution.threads import map_ahead, usable_threads
from pipeline.spectrogram.log_mel import log_mel_part
from pipeline.spectrogram.reader import FrameReader
from pipeline.spectrogram.storing import restore

log = logging.getLogger(__name__)

_BATCH = 32  # clips, or pairs of them


class Pair(NamedTuple):
    """Two near-duplicates, in the order of the spectrogram."""

    clip_id: str
    other_id: str
    correlation: float
    lag: float  # seconds by which `clip_id` has later what `other_id` has; negative: earlier
    identical: bool  # the same frames, to the bit


class _Scan(NamedTuple):
    """What one reading of clips has found."""

    digests: list[bytes]  # of each clip's stored frames
    owners: np.ndarray  # (landmark,) int64, the clip of each landmark
    positions: np.ndarray  # (landmark,) int32, in frames
    vectors: np.ndarray  # (landmark, VECTOR_SIZE) float16


class _Candidates(NamedTuple):
    stands_for: np.ndarray  # (clip,) int64: the first clip with the same frames
    places: np.ndarray  # (candidate, 3): two clips, and a lag in frames


_Read = Callable[[Sequence[str]], Sequence[np.ndarray]]


def find_pairs(spectrogram: Spectrogram, threshold: float) -> list[Pair]:
    """Return all pairs of near-duplicates with at least this correlation, in the order of the spectrogram.

    Raises ArtifactError where frames are damaged.
    """
    reader = FrameReader(spectrogram)
    search = _Search(reader.ok(spectrogram.index.list("clip_id")), reader.read_stored, spectrogram.metadata)
    candidates = search.candidates()
    log.info(
        "comparing %d clips at %d places where they may be alike", len(candidates.stands_for), len(candidates.places)
    )
    return search.confirm(candidates, threshold)


def find_pairs_among(frames: Mapping[str, np.ndarray], front_end: FrontEndMetadata, threshold: float) -> list[Pair]:
    """Return the same among clips in memory: id -> log-mel frames (frame, mel) float32, in the front end's units."""
    metadata: SpectrogramMetadata = {**front_end, "dtype": "float32", "scale": 1.0, "offset": 0.0}
    search = _Search(list(frames), lambda ids: [frames[clip_id] for clip_id in ids], metadata)
    return search.confirm(search.candidates(), threshold)


def _stand_ins(digests: Sequence[bytes]) -> np.ndarray:
    """Return for each clip the first one with the same frames: (clip,) int64."""
    first: dict[bytes, int] = {}
    return np.array([first.setdefault(digest, row) for row, digest in enumerate(digests)], dtype=np.int64)


class _Search:
    """Search among clips whose frames are read by `read`, ids -> stored frames, for a scan of all and to compare pairs."""

    def __init__(self, ids: Sequence[str], read: _Read, metadata: SpectrogramMetadata) -> None:
        self._ids, self._read, self._metadata, self._scale = ids, read, metadata, Scale.of(metadata)

    def candidates(self) -> _Candidates:
        """Read all clips once, and return where pairs of them may be alike."""
        scan = self.scan()
        stands_for = _stand_ins(scan.digests)
        own = stands_for[scan.owners] == scan.owners
        return _Candidates(stands_for, find_candidates(scan.owners[own], scan.positions[own], scan.vectors[own]))

    def confirm(self, candidates: _Candidates, threshold: float) -> list[Pair]:
        """Return the pairs with at least this correlation, in the order of the clips."""
        stands_for = candidates.stands_for.tolist()
        found = {(one, row): self.pair(one, row, None) for row, one in enumerate(stands_for) if one != row}
        matches: dict[tuple[int, int], Match] = {}
        for one, other, match in self.compare(candidates.places):
            if match.correlation >= threshold and match > matches.get((one, other), Match(0.0, 0)):
                matches[one, other] = match
        found |= {(one, other): self.pair(one, other, match) for (one, other), match in matches.items()}
        return [found[rows] for rows in sorted(found)]

    def scan(self) -> _Scan:
        """Read all clips once."""
        parts = list(map_ahead(self._scan_batch, range(0, len(self._ids), _BATCH), usable_threads()))
        digests = [digest for part in parts for digest in part.digests]
        empty = find_landmarks(np.zeros((1, 1), dtype=np.float32), self._scale)  # so that there is one to concatenate
        return _Scan(
            digests,
            np.concatenate([np.zeros(0, dtype=np.int64), *(part.owners for part in parts)]),
            np.concatenate([empty.positions, *(part.positions for part in parts)]),
            np.concatenate([empty.vectors, *(part.vectors for part in parts)]),
        )

    def compare(self, candidates: np.ndarray) -> Iterator[tuple[int, int, Match]]:
        """Yield two clips and their match for each candidate (candidate, 3), in order."""
        starts = range(0, len(candidates), _BATCH)
        for batch in map_ahead(
            lambda start: self._compare(candidates[start : start + _BATCH]), starts, usable_threads()
        ):
            yield from batch

    def pair(self, one: int, other: int, match: Match | None) -> Pair:
        """Return the pair of two clips, by their numbers; without a match their frames are identical."""
        if match is None:
            return Pair(self._ids[one], self._ids[other], 1.0, 0.0, True)
        lag = match.lag / self._scale.frame_rate
        return Pair(self._ids[one], self._ids[other], round(min(match.correlation, 1.0), 4), round(lag, 4), False)

    def _scan_batch(self, start: int) -> _Scan:
        clips = self._read(self._ids[start : start + _BATCH])
        found = [find_landmarks(self._bands(stored), self._scale) for stored in clips]
        return _Scan(
            [hashlib.blake2b(stored.tobytes(), digest_size=16).digest() for stored in clips],
            np.repeat(np.arange(start, start + len(clips)), [len(landmarks.positions) for landmarks in found]),
            np.concatenate([landmarks.positions for landmarks in found]),
            np.concatenate([landmarks.vectors for landmarks in found]),
        )

    def _compare(self, candidates: np.ndarray) -> list[tuple[int, int, Match]]:
        rows = np.unique(candidates[:, :2]).tolist()
        stored = self._read([self._ids[row] for row in rows])
        bands = {row: self._bands(values) for row, values in zip(rows, stored, strict=True)}
        return [
            (one, other, correlate(bands[one], bands[other], lag, self._scale))
            for one, other, lag in candidates.tolist()
        ]

    def _bands(self, stored: np.ndarray) -> np.ndarray:
        return smooth_bands(log_mel_part(restore(stored, self._metadata), self._metadata), self._scale)
