"""Batches of clips with a bounded number of frames, whatever the clips' lengths: as they are, or with padding."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

C = TypeVar("C")  # a clip, its id, or its number


def clip_batches(clip_ids: Iterable[C], num_frames: Callable[[C], int], *, frames_per_batch: int) -> Iterator[list[C]]:
    """Yield the clips in order, in batches of at most `frames_per_batch` frames (a longer clip comes alone)."""
    batch: list[C] = []
    held = 0
    for clip_id in clip_ids:
        count = num_frames(clip_id)
        if batch and held + count > frames_per_batch:
            yield batch
            batch, held = [], 0
        batch.append(clip_id)
        held += count
    if batch:
        yield batch


def padded_batches(clips: Iterable[C], num_frames: Callable[[C], int], *, frames_per_batch: int) -> Iterator[list[C]]:
    """Yield the clips in order, in batches of at most `frames_per_batch` frames once all are padded to the longest.

    A longer clip comes alone. At most one clip more than a batch is taken ahead.
    """
    batch: list[C] = []
    longest = 0
    for clip in clips:
        count = num_frames(clip)
        if batch and max(longest, count) * (len(batch) + 1) > frames_per_batch:
            yield batch
            batch, longest = [], 0
        batch.append(clip)
        longest = max(longest, count)
    if batch:
        yield batch
