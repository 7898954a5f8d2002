"""A check that passed on the same files passes again: it need not be made twice.

Checking all of params.yaml imports every model, and with them torch: seconds, on a run that has nothing to do.
"""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

from pipeline.artifacts.files import replacing


def check_once(check: Callable[[], object], files: Iterable[Path], note: Path) -> bool:
    """Call `check`, which raises on a mistake, unless it passed on these very files before; tell whether it was called.

    `note` is where a digest of the files is kept.
    """
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path}\x1f".encode() + (path.read_bytes() if path.is_file() else b"") + b"\x1e")
    found = digest.hexdigest()
    if note.is_file() and note.read_text().strip() == found:
        return False
    check()
    with replacing(note) as partial:
        partial.write_text(found + "\n")
    return True
