"""Recognition of a corpus by its layout: published ones by the files that only they have, then tables, folders and names.

An adapter that can tell its layout has a function `recognise`, and one line here.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Protocol

from pipeline.corpora.layouts import FolderContents, Recognised
from pipeline.registry import Registry


class Recognise(Protocol):
    """Function by which an adapter says whether a folder has its layout."""

    def __call__(self, contents: FolderContents, /) -> Recognised | None:
        """Return the settings with which the adapter reads the folder; None where its layout is another one."""


# In the order in which they are asked: the first that answers is likeliest.
RECOGNISERS: Registry[Recognise] = Registry(
    "layout",
    {
        "esc50": "pipeline.corpora.esc50:recognise",
        "urbansound8k": "pipeline.corpora.urbansound8k:recognise",
        "speech_commands": "pipeline.corpora.speech_commands:recognise",
        "fsd50k": "pipeline.corpora.fsd50k:recognise",
        "irmas": "pipeline.corpora.irmas:recognise",
        "openmic2018": "pipeline.corpora.openmic2018:recognise",
        "audioset": "pipeline.corpora.audioset:recognise",
        "huggingface": "pipeline.corpora.huggingface:recognise",
        "datafile": "pipeline.corpora.datafile:recognise",
        "table": "pipeline.corpora.table:recognise",
        "folder": "pipeline.corpora.folder:recognise",
        "beside": "pipeline.corpora.beside:recognise",
        "pattern": "pipeline.corpora.pattern:recognise",
    },
)


_OF_ANYONE = ("table", "folder", "beside", "pattern")  # layouts that folders of many people have


def recognised(contents: FolderContents) -> Iterator[Recognised]:
    """Yield the layouts that a folder has, the likeliest first, of all adapters.

    A folder that holds nothing but one folder, as archives often unpack, is asked for in that before it is taken for a
    folder of anyone's.
    """
    published = list(_asked(contents, [kind for kind in RECOGNISERS if kind not in _OF_ANYONE]))
    only = "" if published else _only_folder(contents)
    within = list(recognised(contents.within(only))) if only else []
    yield from published
    for layout in within:
        yield replace(layout, below=f"{only}/{layout.below}".rstrip("/"))
    if not within:
        yield from _asked(contents, _OF_ANYONE)


def _asked(contents: FolderContents, kinds: Iterable[str]) -> Iterator[Recognised]:
    for kind in kinds:
        if layout := RECOGNISERS[kind](contents):
            yield layout


def _only_folder(contents: FolderContents) -> str:
    """Return the only folder of the contents, if no file lies beside it; empty otherwise."""
    first = {path.parts[0] for path in (*contents.audio, *contents.others)}
    name = first.pop() if len(first) == 1 else ""
    return name if contents.has_folder(name) and name else ""
