"""Batches of clips with a bounded number of frames, whatever the clips' lengths."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

C = TypeVar("C")  # a clip's id, or its number


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
