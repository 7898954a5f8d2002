"""Audio files in folders: a sorted walk below the corpus root, and counts of what it leaves out.

Left out are hidden files and folders (names that begin with `.`, such as macOS's `._dog.wav`), `__MACOSX`, folders whose
name is in `ignore`, and files that do not end as audio does. Symbolic links are followed, a folder within itself is not.
"""

import logging
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pipeline.errors import CorpusError

log = logging.getLogger(__name__)

# Endings of files that may hold sound, whether this machine can decode them or not: what it cannot is reported as bad.
AUDIO_SUFFIXES = (
    ".wav", ".wave", ".rf64", ".w64", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2", ".aif", ".aiff", ".aifc", ".au",
    ".snd", ".sph", ".voc", ".caf", ".m4a", ".mp4", ".aac", ".3gp", ".3g2", ".amr", ".webm", ".wma", ".mka", ".mkv", ".mov",
    ".avi",
)  # fmt: skip

_NAMED = 5  # files that a warning names
_NEVER = frozenset({"__MACOSX"})  # what macOS adds to zip files


@dataclass(frozen=True)
class AudioFiles:
    """Audio files below a folder, and what the walk left out."""

    paths: list[PurePosixPath]  # below the folder, sorted
    left_out: Counter[str] = field(default_factory=Counter)  # reason -> files or folders
    others: list[PurePosixPath] = field(default_factory=list)  # files that do not end as audio does, sorted


def audio_files(folder: Path, ignore: Collection[str] = ()) -> AudioFiles:
    """Return the audio files below a folder. Raises CorpusError where a folder cannot be listed, or is none."""
    left_out: Counter[str] = Counter()
    paths: list[PurePosixPath] = []
    others: list[PurePosixPath] = []
    for path in _walk(folder, PurePosixPath(), ignore, left_out, ()):
        (paths if path.name.lower().endswith(AUDIO_SUFFIXES) else others).append(path)
    if others:
        left_out["not_audio"] = len(others)
    if left_out:
        log.info("%s: left out %s", folder, ", ".join(f"{count} {why}" for why, count in sorted(left_out.items())))
    return AudioFiles(sorted(paths), left_out, sorted(others))


def report_left_out(folder: Path, what: str, names: Sequence[object], remedy: str) -> None:
    """Warn of files that an adapter leaves out, with examples, if there are any."""
    if names:
        more = f", and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        examples = ", ".join(str(name) for name in names[:_NAMED])
        log.warning("%s: left out %d %s: %s%s; %s", folder, len(names), what, examples, more, remedy)


def _walk(
    folder: Path, below: PurePosixPath, ignore: Collection[str], left_out: Counter[str], parents: tuple[str, ...]
) -> Iterator[PurePosixPath]:
    for entry in _entries(folder):
        if entry.name.startswith(".") or entry.name in _NEVER:
            left_out["hidden"] += 1
        elif entry.is_dir():
            place = os.path.realpath(entry.path)
            if entry.name in ignore or place in parents:
                left_out["ignored"] += 1
            else:
                yield from _walk(Path(entry.path), below / entry.name, ignore, left_out, (*parents, place))
        else:
            yield below / entry.name


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        return sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise CorpusError(f"{folder}: expected a folder of audio, found {error.strerror or error}") from None
