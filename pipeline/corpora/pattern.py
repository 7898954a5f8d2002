r"""Pattern adapter: a regular expression finds label, and perhaps group and fold, in the name of each file.

7_jackson_32.wav         pattern: (?P<label>\d+)_(?P<group>[a-z]+)_\d+

The expression must match the whole name without its ending, or the whole path below root where it contains a `/`. Files that
it does not match are reported and left out.
"""

import re
from pathlib import PurePosixPath
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator

from pipeline.corpora.base import AdapterParams, ClipRow, CorpusListing
from pipeline.corpora.layouts import FolderContents, Recognised
from pipeline.corpora.name_fields import choose_pattern
from pipeline.corpora.spelling import found_classes
from pipeline.corpora.walking import audio_files, report_left_out
from pipeline.errors import CorpusError

_GROUPS = frozenset({"label", "group", "fold"})


def _require_pattern(text: str) -> str:
    try:
        names = set(re.compile(text).groupindex)
    except re.error as error:
        raise ValueError(f"expected a regular expression, found {error}") from None
    if "label" not in names or not names <= _GROUPS:
        found = ", ".join(sorted(names)) or "none"
        raise ValueError(f"expected the named group (?P<label>...), and perhaps group and fold, found {found}")
    return text


class Params(AdapterParams):
    kind: Literal["pattern"]
    pattern: Annotated[str, AfterValidator(_require_pattern)]
    ignore: list[str]  # names of folders that hold no clips
    licence: str

    layout: ClassVar[str] = "audio files whose names corpus.pattern matches"


def recognise(contents: FolderContents) -> Recognised | None:
    """Return the layout of a folder whose files have a part of their names in common that recurs as labels do."""
    fields = choose_pattern([path.stem for path in contents.audio]) if contents.audio else None
    if fields is None:
        return None
    parts = "; ".join(f"{number}: {values}" for number, values in enumerate(fields.examples, start=1))
    note = f"fields of the names: {parts}; if another one is the label, give corpus.pattern=..."
    group = "" if fields.group is None else f", field {fields.group + 1} the group"
    why = f"field {fields.label + 1} of its files' names is the label{group}"
    return Recognised("pattern", why, {"pattern": fields.pattern}, notes=(note,))


def list_clips(params: Params) -> CorpusListing:
    """List the audio files that match; a clip's id is its path. The classes are the labels, sorted."""
    files, pattern = audio_files(params.root, params.ignore), re.compile(params.pattern)
    clips, others = [], []
    for path in files.paths:
        match = pattern.fullmatch(_matched_name(path, params.pattern))
        if match is None or not match["label"]:
            others.append(path)
        else:
            found = match.groupdict(default="")
            clips.append(
                ClipRow(
                    str(path), str(path), (found["label"],), group=found.get("group", ""), fold=found.get("fold", "")
                )
            )
    if others and not clips:
        raise CorpusError(
            f"{params.root}: expected files whose names match corpus.pattern, {params.pattern}, found none among "
            f"{len(others)}, {_matched_name(others[0], params.pattern)} for one"
        )
    report_left_out(params.root, f"files that {params.pattern} does not match", others, "corpus.pattern says which do")
    files.left_out["unmatched"] = len(others)
    classes = found_classes(clip.labels for clip in clips)
    return CorpusListing(classes, "one", params.licence, clips, left_out=files.left_out)


def _matched_name(path: PurePosixPath, pattern: str) -> str:
    return str(path.with_suffix("")) if "/" in pattern else path.stem
