"""Labels of clips in the JSON files of AST's and PSLA's programs, such as PSLA's enhanced labels.

    {"data": [{"wav": "/data/x.wav", "labels": "/m/07rwj00,/m/09x0r"}, ...]}

Labels are ids of classes where the corpus has ids, else names. A clip is known by the name of its file alone, without
folders and suffix: `wav` is a path on the machine of whoever wrote the file.
"""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from pipeline.artifacts.clips import ClipTable
from pipeline.artifacts.files import replacing
from pipeline.corpora.base import reject
from pipeline.corpora.datafile import read_entries
from pipeline.errors import CorpusError

log = logging.getLogger(__name__)


def read_label_json(path: Path, clips: ClipTable) -> tuple[list[str], list[list[int]]]:
    """Return the clips of a file that the corpus has, and the positions of their labels in the class list, ascending.

    Clips that the corpus has not are counted in the log: videos vanish. Raises CorpusError for labels that are no classes,
    for names of several clips, and where the corpus has none of the clips.
    """
    entries = read_entries(path)
    by_name = _clips_by_name(clips, {PurePosixPath(entry["wav"]).stem for entry in entries}, path)
    position = {key: number for number, key in enumerate(_keys(clips))}
    rows = [(PurePosixPath(entry["wav"]).stem, entry["labels"]) for entry in entries]
    labels = [[label.strip() for label in own.split(",") if label.strip()] for _, own in rows]
    strangers = Counter(label for own in labels for label in own if label not in position)
    counts = [f"{label!r} (of {count} clips)" for label, count in sorted(strangers.items())]
    twice = [name for name, count in Counter(name for name, _ in rows).items() if count > 1]
    reject(path, {f"labels that are none of {', '.join(list(position)[:3])}, ...": counts, "clips listed twice": twice})
    found = [(by_name[name], own) for (name, _), own in zip(rows, labels, strict=True) if name in by_name]
    if not found:
        known = ", ".join(clips.list("clip_id")[:3])
        raise CorpusError(
            f"{path}: expected clips of the corpus ({known}, ...) by the names of their files, found none of them; set "
            "labels.use to a file of this corpus's clips, or to ''"
        )
    if len(found) < len(entries):
        log.info("%s: %d of %d clips are not in the corpus", path, len(entries) - len(found), len(entries))
    return [clip for clip, _ in found], [sorted({position[label] for label in own}) for _, own in found]


def write_label_json(
    path: Path, clips: ClipTable, root: Path, clip_ids: Sequence[str], labels: Sequence[Sequence[int]]
) -> None:
    """Write clips and their labels, positions in the class list, with the places of the audio below `root`."""
    sources = dict(
        zip(clips.list("clip_id"), zip(clips.list("source"), clips.list("member"), strict=True), strict=True)
    )
    keys = _keys(clips)
    data = [
        {"wav": str(root.joinpath(*filter(None, sources[clip]))), "labels": ",".join(keys[label] for label in own)}
        for clip, own in zip(clip_ids, labels, strict=True)
    ]
    with replacing(path) as partial:
        partial.write_text(json.dumps({"data": data}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _keys(clips: ClipTable) -> list[str]:
    return clips.metadata.get("class_ids") or clips.metadata["classes"]


def _clips_by_name(clips: ClipTable, wanted: set[str], path: Path) -> dict[str, str]:
    """Return name of a file -> id of its clip, for the names that are wanted."""
    found: dict[str, list[str]] = {}
    for clip in clips.list("clip_id"):
        if (name := PurePosixPath(clip).stem) in wanted:
            found.setdefault(name, []).append(clip)
    several = [f"{name} ({', '.join(own)})" for name, own in found.items() if len(own) > 1]
    reject(path, {"names that several clips of the corpus have": several})
    return {name: own[0] for name, own in found.items()}
