"""Folder adapter: the folders that a file lies in are its label, and perhaps its fold and group.

<root>/<label>/**/*.wav              levels: [label]
<root>/<fold>/<label>/**/*.wav       levels: [fold, label]
<root>/<label>/<group>/**/*.wav      levels: [label, group]

Files that do not lie deep enough are reported and left out.
"""

from pathlib import PurePosixPath
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator

from pipeline.corpora.base import AdapterParams, ClipRow, CorpusListing
from pipeline.corpora.folder_levels import choose_levels
from pipeline.corpora.layouts import FolderContents, Recognised
from pipeline.corpora.spelling import found_classes
from pipeline.corpora.walking import audio_files, report_left_out

Level = Literal["label", "fold", "group", "other"]

_IGNORED = {"_background_noise_"}  # by default, as in recipes/defaults.yaml


def _require_levels(levels: list[Level]) -> list[Level]:
    named = [level for level in levels if level != "other"]
    if named.count("label") != 1 or len(set(named)) < len(named):
        raise ValueError("expected `label` once, and `fold` and `group` at most once")
    return levels


class Params(AdapterParams):
    kind: Literal["folder"]
    # What each level of folders below root is; deeper ones mean nothing.
    levels: Annotated[list[Level], AfterValidator(_require_levels)]
    ignore: list[str]  # names of folders that hold no clips
    licence: str

    layout: ClassVar[str] = "a folder of audio files for each class"


def recognise(contents: FolderContents) -> Recognised | None:
    """Return the layout of a folder whose audio files lie in folders that can be labels."""
    paths = [path for path in contents.audio if not _IGNORED & set(path.parts)]
    levels = choose_levels(paths) if paths else None
    if levels is None:
        return None
    why = f"its files lie in {'/'.join(f'<{level}>' for level in levels)}/, such as {paths[0].parent}"
    return Recognised("folder", why, {} if levels == ["label"] else {"levels": levels})


def list_clips(params: Params) -> CorpusListing:
    """List the audio files; a clip's id is its path. The classes are the names of the folders, sorted."""
    files = audio_files(params.root, params.ignore)
    clips, stray = [], []
    for path in files.paths:
        if len(path.parts) <= len(params.levels):
            stray.append(path)
        else:
            clips.append(_clip(path, dict(zip(params.levels, path.parts, strict=False))))
    levels = "/".join(f"<{level}>" for level in params.levels)
    report_left_out(params.root, f"files that do not lie in {levels}/", stray, "corpus.levels says what folders mean")
    files.left_out["stray"] = len(stray)
    classes = found_classes(clip.labels for clip in clips)
    return CorpusListing(classes, "one", params.licence, clips, left_out=files.left_out)


def _clip(path: PurePosixPath, levels: dict[Level, str]) -> ClipRow:
    name = str(path)
    return ClipRow(name, name, (levels["label"],), group=levels.get("group", ""), fold=levels.get("fold", ""))
