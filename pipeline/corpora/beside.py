"""Beside adapter: the labels of an audio file are in a text file beside it, a label a line.

<root>/**/<name>.wav, <name>.txt

Spaces around a label, empty lines and lines that are there twice count for nothing. An audio file without a text file is
reported and left out; one whose text file is empty has no label.
"""

from pathlib import Path, PurePosixPath
from typing import ClassVar, Literal

from pipeline.artifacts.clips import LabelKind
from pipeline.corpora.base import AdapterParams, ClipRow, CorpusListing, read_text
from pipeline.corpora.layouts import FolderContents, Recognised, Setting
from pipeline.corpora.spelling import found_classes, tidy
from pipeline.corpora.walking import audio_files, report_left_out
from pipeline.errors import CorpusError

_FEWEST = 0.5  # of the audio files must have a text file beside them
_LONGEST = 200  # characters of a line that may be a label: transcripts have longer ones


class Params(AdapterParams):
    kind: Literal["beside"]
    label_kind: LabelKind  # one: exactly one label per clip; many: any number
    ignore: list[str]  # names of folders that hold no clips
    licence: str

    layout: ClassVar[str] = "audio files, each with a .txt of its labels beside it, a label a line"


def recognise(contents: FolderContents) -> Recognised | None:
    """Return the layout of a folder in which most audio files have a text file of labels, which recur in other files."""
    paths = [path for path in contents.audio if contents.has(str(path.with_suffix(".txt")))]
    if not paths or len(paths) < _FEWEST * len(contents.audio):
        return None
    try:
        labels = [_labels(contents.root / path.with_suffix(".txt")) for path in paths]
    except (CorpusError, OSError):
        return None
    classes = found_classes(labels)
    if not 1 < len(classes) <= len(paths) / 2 or any(len(name) > _LONGEST for name in classes):
        return None
    settings: dict[str, Setting] = {} if any(len(own) != 1 for own in labels) else {"label_kind": "one"}
    return Recognised("beside", f"{len(paths)} of its files have a .txt of labels beside them", settings)


def list_clips(params: Params) -> CorpusListing:
    """List the audio files that have a text file; a clip's id is its path. The classes are the labels, sorted."""
    files = audio_files(params.root, params.ignore)
    texts = frozenset(files.others)
    paths = [path for path in files.paths if path.with_suffix(".txt") in texts]
    alone = [path for path in files.paths if path.with_suffix(".txt") not in texts]
    report_left_out(params.root, "files without a .txt of their labels", alone, "write one beside each, a label a line")
    files.left_out["unlabelled"] = len(alone)
    clips = [_clip(path, _labels(params.root / path.with_suffix(".txt"))) for path in paths]
    classes = found_classes(clip.labels for clip in clips)
    return CorpusListing(classes, params.label_kind, params.licence, clips, left_out=files.left_out)


def _clip(path: PurePosixPath, labels: tuple[str, ...]) -> ClipRow:
    return ClipRow(str(path), str(path), labels)


def _labels(path: Path) -> tuple[str, ...]:
    lines = read_text(path, "the labels of the sound beside it, a label a line").splitlines()
    return tuple(dict.fromkeys(tidy(line) for line in lines if line.strip()))
