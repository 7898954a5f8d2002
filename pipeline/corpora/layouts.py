"""Layouts of corpora: the files of a folder by name, and the settings by which an adapter reads it.

Conventions: paths are below the folder, with forward slashes.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from pipeline.corpora.walking import audio_files

Setting = str | int | float | bool | None | list[str]


@dataclass(frozen=True)
class FolderContents:
    """Names of all files below a folder, none of them opened."""

    root: Path
    audio: list[PurePosixPath]  # sorted
    others: list[PurePosixPath] = field(default_factory=list)  # that do not end as audio does, sorted
    left_out: Counter[str] = field(default_factory=Counter)  # reason -> files or folders that the walk passed over

    def has(self, name: str) -> bool:
        """Return whether there is such a file, given by its path."""
        return PurePosixPath(name) in self._others

    def has_folder(self, name: str) -> bool:
        """Return whether there is such a folder with files in it, given by its path."""
        return PurePosixPath(name) in self._folders

    def within(self, name: str) -> "FolderContents":
        """Return the contents of a folder below."""
        audio, others = (
            [path.relative_to(name) for path in paths if path.is_relative_to(name)]
            for paths in (self.audio, self.others)
        )
        return FolderContents(self.root / name, audio, others)

    @cached_property
    def audio_names(self) -> frozenset[str]:
        """The audio files as texts, for looking up the paths of tables."""
        return frozenset(map(str, self.audio))

    @cached_property
    def _others(self) -> frozenset[PurePosixPath]:
        return frozenset(self.others)

    @cached_property
    def _folders(self) -> frozenset[PurePosixPath]:
        return frozenset(parent for path in (*self.audio, *self.others) for parent in path.parents)


@dataclass(frozen=True)
class Recognised:
    """Layout of a folder, as the settings of the adapter that reads it."""

    kind: str  # of the adapter
    why: str  # evidence, for people
    settings: Mapping[str, Setting] = field(
        default_factory=dict
    )  # key of the section `corpus` -> value, not the default
    below: str = ""  # folder of the contents that is the corpus's root; empty = they are
    notes: tuple[str, ...] = ()  # what was left out of the settings, and why


def look_into(root: Path) -> FolderContents:
    """Return the contents of a folder. Raises CorpusError where a folder cannot be listed, or is none."""
    files = audio_files(root)
    return FolderContents(root, files.paths, files.others, files.left_out)
