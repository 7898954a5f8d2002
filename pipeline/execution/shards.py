"""Content-defined boundaries of shards: they depend on the clips, not on their positions.

A clip whose hash meets a condition ends a shard, as in the content-defined chunking of LBFS (Muthitacharoen et al., 2001)
and rsync. With boundaries at every n-th clip, one clip added at the front would move every later boundary and so change
every shard; here it changes the shard that it falls into, and later boundaries are soon the same again.
"""

import hashlib
from collections.abc import Sequence


def cut_shards(keys: Sequence[str], *, minimum: int, average: int, maximum: int) -> list[range]:
    """Cut `keys` (one per clip, in manifest order) into consecutive ranges of clips.

    Every shard holds `minimum` to `maximum` clips, except the last, which may be shorter; `average` is the expected length
    where `maximum` is far above it. Raises ValueError unless 1 <= minimum <= average <= maximum.
    """
    if not 1 <= minimum <= average <= maximum:
        raise ValueError(f"expected 1 <= minimum {minimum} <= average {average} <= maximum {maximum}")
    one_in = average - minimum + 1  # after the minimum, a shard ends at one in this many clips
    shards = []
    start = 0
    for position, key in enumerate(keys):
        length = position + 1 - start
        if length == maximum or (length >= minimum and _hash(key) % one_in == 0):
            shards.append(range(start, position + 1))
            start = position + 1
    if start < len(keys):
        shards.append(range(start, len(keys)))
    return shards


def shard_name(keys: Sequence[str]) -> str:
    """Return the name of a shard, a digest of its clips, independent of their position in the corpus."""
    digest = hashlib.sha256()
    for key in keys:
        digest.update(f"{len(key)}:{key}".encode())  # the length separates ("ab", "c") from ("a", "bc")
    return digest.hexdigest()[:16]


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
