"""One flipped bit in a file."""

import os
from pathlib import Path

import numpy as np


def flip(path: Path, generator: np.random.Generator) -> None:
    """Flip one bit as a failing disk does it: in place, with the size, the time and the mode that the file had."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[generator.integers(len(content))] ^= 1 << generator.integers(8)
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(content)
    path.chmod(status.st_mode)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
