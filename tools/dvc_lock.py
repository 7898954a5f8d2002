"""Fast update of one stage's entry of dvc.lock, as text.

DVC parses and writes the whole file for each stage: with a hundred stages this takes 1 to 3 s, under the lock that all
others wait for, and longer than everything else that it does for a stage. Here DVC formats only the entry, which replaces
the old one or is inserted before the first of the stages that follow in the graph. The file is therefore the one that `dvc
repro` writes, in whatever order stages finish; and it is replaced atomically, where an interruption of DVC leaves an
incomplete file.
"""

import logging
import os
import re
from collections.abc import Collection
from pathlib import Path

from dvc.stage import PipelineStage, Stage
from dvc.stage.serialize import to_lockfile
from dvc.utils.serialize import dumps_yaml

from pipeline.artifacts.files import replacing

log = logging.getLogger(__name__)

_HEAD = ["schema: '2.0'", "stages:"]
_KEY = re.compile(r"  (?P<name>[^\s#?].*):")  # of a stage; its content is indented further


def record(stage: Stage, later: Collection[str]) -> None:
    """Write a stage's entry into its dvc.lock; the caller holds DVC's lock.

    `later` are the names of the stages that follow it. A file that is not in DVC's format is rewritten by DVC.
    """
    if not isinstance(stage, PipelineStage):  # a .dvc file, which has no entry
        stage.dump(update_pipeline=False)
        return
    path = Path(os.path.realpath(Path(stage.path).with_suffix(".lock")))
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    entry = dumps_yaml({"schema": "2.0", "stages": to_lockfile(stage)})
    after = merge_entry(before, entry, later) if before else entry
    if after is None:
        stage.dump(update_pipeline=False)
    elif after != before:
        log.info("Updating lock file '%s'", os.path.relpath(path))
        with replacing(path) as partial:
            partial.write_text(after, encoding="utf-8")
        stage.repo.scm_context.track_file(os.path.relpath(path))


def merge_entry(text: str, entry: str, later: Collection[str]) -> str | None:
    """Return a dvc.lock with the one stage of `entry`, itself a dvc.lock; None if it is not in DVC's format."""
    old, new = _split(text), _split(entry)
    if old is None or new is None:
        return None
    ((name, lines),) = new.items()
    if name not in old:
        names = list(old)
        place = next((number for number, other in enumerate(names) if other in later), len(names))
        keys = [*names[:place], name, *names[place:]]
        old = {key: old.get(key, []) for key in keys}
    old[name] = lines
    return "\n".join([*_HEAD, *(line for entry_lines in old.values() for line in entry_lines), ""])


def _split(text: str) -> dict[str, list[str]] | None:
    """Return name -> lines of each stage; None for anything but the two header lines and stages."""
    lines = text.split("\n")
    if lines[:2] != _HEAD or lines[-1]:
        return None
    entries: dict[str, list[str]] = {}
    for line in lines[2:-1]:
        if key := _KEY.fullmatch(line):
            name = key["name"].strip("'\"")
            if name in entries:
                return None
            entries[name] = [line]
        elif entries and (line.startswith("   ") or not line):
            next(reversed(entries.values())).append(line)
        else:
            return None
    return entries
