"""Derivation of independent, named random streams from one seed.

A stream depends only on the seed and its name, not on the draws of other streams, so a new random draw in one place does not
change any other.
"""

import hashlib

import numpy as np


def named_seed(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed for the stream `names` (for example "train", fold, "mixup") of `seed`."""
    text = "\x1f".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def named_generator(seed: int, *names: str | int) -> np.random.Generator:
    """Return the NumPy generator of the stream `names` of `seed`."""
    return np.random.default_rng(named_seed(seed, *names))
