"""Which clips a page shows: the classes in turn, within a class by the hash of the clip's id, whatever models say."""

import hashlib
from collections.abc import Iterable, Sequence


def choose_in_turn(clips: Iterable[tuple[str, int]], num_classes: int, count: int) -> list[str]:
    """Choose at most `count` of `clips` (id, class)."""
    queues: list[list[str]] = [[] for _ in range(num_classes)]
    for clip, label in clips:
        queues[label].append(clip)
    for queue in queues:
        queue.sort(key=_by_hash, reverse=True)
    chosen: list[str] = []
    while len(chosen) < count and any(queues):
        chosen += [queue.pop() for queue in queues if queue]
    return chosen[:count]


def shuffle(clips: Sequence[str]) -> list[str]:
    """Return clips in the order of their hashes: the first n of them are a draw of n."""
    return sorted(clips, key=_by_hash)


def _by_hash(clip: str) -> bytes:
    return hashlib.sha256(clip.encode()).digest()
