"""Sample of the frames that a vocabulary is fitted on, chosen by a hash of clip, position and seed.

Conventions: a clip's key is a 64-bit hash of its id and the seed, a frame's key a 64-bit hash of its clip's key and its
position. The sample is every frame when they fit, else the frames with the smallest keys. Neither the order of the clips
nor anything else in the corpus enters, and FAISS, which subsamples large samples silently, is never given the choice.
Where a token stands for several frames, what is drawn is tokens, each with all that its features are made of.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from pipeline.errors import CorpusError
from pipeline.vocabulary.batching import clip_batches
from pipeline.vocabulary.features import window_places

# A large corpus is sampled in two steps, clips and then frames, so that reading stays proportional to the sample: at
# most this many frames are read for one that is kept. 16 takes 60 frames of a ten-second clip at 100 frames a second,
# from 16,000 clips for a sample of a million; a smaller number means fewer clips with more (and more alike) frames each.
FRAMES_READ_PER_FRAME_KEPT = 16
FRAMES_PER_BATCH = 1 << 17  # 64 MiB of float32 at 128 mel bands


class ClipFrames(Protocol):
    """Interface of frame readers that sampling uses; see `pipeline.spectrogram.reader.FrameReader`."""

    def ok(self, clip_ids: Sequence[str]) -> list[str]: ...
    def num_frames(self, clip_id: str) -> int: ...
    def read(self, clip_ids: Sequence[str]) -> list[np.ndarray]: ...


@dataclass(frozen=True)
class FrameSample:
    """Sampled tokens, and the metadata by which the draw can be checked later."""

    windows: (
        np.ndarray
    )  # (token, frame, mel) float32, in the front end's units: a token's frames, and those beside them
    margin: int  # frames on either side
    metadata: dict[str, int | str]  # clips and frames drawn, frames available, digest of which
    counts: Mapping[str, int] = field(
        default_factory=dict
    )  # clip id -> tokens drawn of it, in the order of the windows
    targets: np.ndarray | None = None  # (clip, class) of these clips, where features are fitted on labels

    @property
    def frames(self) -> np.ndarray:
        """The tokens' own frames, end to end: (frame, mel)."""
        stop = self.windows.shape[1] - self.margin
        return self.windows[:, self.margin : stop].reshape(-1, self.windows.shape[2])


def draw_sample(
    reader: ClipFrames, clip_ids: Sequence[str], *, sample_frames: int, seed: int, stack: int = 1, margin: int = 0
) -> FrameSample:
    """Draw at most `sample_frames` frames of the usable clips among `clip_ids`, in tokens of `stack` frames.

    With each come the `margin` frames on either side that its features need. Tokens come out ordered by clip id, then by
    time. Raises CorpusError when no clip has a frame.
    """
    lengths = {clip_id: reader.num_frames(clip_id) for clip_id in sorted(reader.ok(clip_ids))}
    available = sum(lengths.values())
    if available == 0:
        raise CorpusError(
            f"vocabulary sample: expected training clips with frames, found {len(clip_ids)} clips without a usable frame; "
            "see the index of the spectrogram for the reasons, and the split for the roles"
        )
    num_tokens = {clip_id: -(-length // stack) for clip_id, length in lengths.items()}
    chosen = choose_frames(num_tokens, sample_frames=max(1, sample_frames // stack), seed=seed)
    drawn = []
    for batch in clip_batches(list(chosen), lengths.__getitem__, frames_per_batch=FRAMES_PER_BATCH):
        for clip_id, frames in zip(batch, reader.read(batch), strict=True):
            drawn.append(frames[window_places(chosen[clip_id], len(frames), stack=stack, margin=margin)])
    windows = np.concatenate(drawn).astype(np.float32, copy=False)
    metadata: dict[str, int | str] = {
        "clips": len(chosen),
        "frames": len(windows) * stack,
        "available": available,
        "digest": _digest(chosen),
    }
    return FrameSample(windows, margin, metadata, {clip_id: len(tokens) for clip_id, tokens in chosen.items()})


def choose_frames(lengths: dict[str, int], *, sample_frames: int, seed: int) -> dict[str, np.ndarray]:
    """Choose min(`sample_frames`, all) frames: clip id -> ascending positions (frame,) int64, clips in order of id.

    `lengths` holds the number of frames, or of tokens of several frames, of each clip. Every frame of the corpus is equally
    likely to be chosen, so a clip counts by its length.
    """
    keys = {clip_id: _clip_key(clip_id, seed) for clip_id in lengths}
    visited: list[str] = []
    reached = 0
    for clip_id in sorted(lengths, key=lambda clip_id: (keys[clip_id], clip_id)):
        if reached >= FRAMES_READ_PER_FRAME_KEPT * sample_frames:
            break
        visited.append(clip_id)
        reached += lengths[clip_id]
    visited.sort()
    frame_keys = [_frame_keys(keys[clip_id], lengths[clip_id]) for clip_id in visited]
    if reached > sample_frames:
        limit = np.partition(np.concatenate(frame_keys), sample_frames)[sample_frames]
    else:
        limit = np.uint64(2**64 - 1)
    chosen = {clip_id: np.flatnonzero(k < limit) for clip_id, k in zip(visited, frame_keys, strict=True)}
    return {clip_id: positions for clip_id, positions in chosen.items() if len(positions)}


def choose_clips(lengths: dict[str, int], *, most: int, seed: int) -> list[str]:
    """Choose clips by their keys while they hold at most `most` frames, or tokens, in all; the first in any case.

    `lengths` holds each clip's; empty ones are left out. Clips come in order of id.
    """
    keys = {clip_id: _clip_key(clip_id, seed) for clip_id, length in lengths.items() if length}
    chosen: list[str] = []
    held = 0
    for clip_id in sorted(keys, key=lambda clip_id: (keys[clip_id], clip_id)):
        held += lengths[clip_id]
        if chosen and held > most:
            break
        chosen.append(clip_id)
    return sorted(chosen)


def _clip_key(clip_id: str, seed: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}\x1f{clip_id}".encode(), digest_size=8).digest(), "little")


def _frame_keys(clip_key: int, num_frames: int) -> np.ndarray:
    """Hash positions 0 .. num_frames - 1 to (frame,) uint64 with SplitMix64 (Steele, Lea and Flood, 2014)."""
    z = np.uint64(clip_key) + np.arange(1, num_frames + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


def _digest(chosen: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for clip_id, positions in chosen.items():
        digest.update(f"{clip_id}\x1f{len(positions)}\x1f".encode())
        digest.update(positions.astype("<i8").tobytes())
    return digest.hexdigest()[:32]
