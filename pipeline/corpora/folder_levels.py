"""Meaning of the levels of folders that audio files lie in: fold, label, group, or nothing, by the names on each level."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath

from pipeline.corpora.splitting import PUBLISHED_ROLES

_FOLD = re.compile(r"(fold|split)[ _-]?\d+", re.IGNORECASE)
_FEWEST = 0.9  # of the files must lie as deep as the levels
_MOST = 3  # levels that are told apart

Levels = list[str]  # label, fold, group or other, from the outside


def choose_levels(paths: Sequence[PurePosixPath]) -> Levels | None:
    """Return the meaning of each level of folders; None where no level can be labels: it needs two names and few files.

    A level with one name is nothing, one of names such as `train` or `fold1` is the fold. Of two levels that are left, the
    inner one holds the labels where its names recur in most folders of the outer one, and are the fewer: then the outer
    one is the group. Otherwise the outer one holds the labels.
    """
    depth = _depth(paths)
    folders = [path.parts[:depth] for path in paths if len(path.parts) > depth]
    names = [sorted({parts[level] for parts in folders}) for level in range(depth)]
    levels = ["other" if len(own) < 2 else "fold" if _are_folds(own) else "" for own in names]
    if levels.count("fold") > 1:
        levels = [
            "other" if level == "fold" and "fold" in levels[:place] else level for place, level in enumerate(levels)
        ]
    free = [place for place, level in enumerate(levels) if not level]
    if not free:
        return None
    label, group = _label_and_group(folders, free)
    if len(names[label]) > len(folders) / 2:
        return None
    for place in free:
        levels[place] = "label" if place == label else "group" if place == group else "other"
    return levels[: max(place for place, level in enumerate(levels) if level != "other") + 1]


def _depth(paths: Sequence[PurePosixPath]) -> int:
    """Return the number of levels that nearly all files lie below."""
    depth = 0
    while depth < _MOST and sum(len(path.parts) > depth + 1 for path in paths) >= _FEWEST * len(paths):
        depth += 1
    return depth


def _are_folds(names: Sequence[str]) -> bool:
    roles = [PUBLISHED_ROLES.get(name.lower()) for name in names]
    if all(roles):
        return "train" in roles and "test" in roles
    return all(_FOLD.fullmatch(name) for name in names)


def _label_and_group(folders: Sequence[tuple[str, ...]], free: Sequence[int]) -> tuple[int, int | None]:
    """Return the level of the labels and that of the groups, if there is one."""
    if len(free) < 2:
        return free[0], None
    outer, inner = free[:2]
    outer_of, inner_of = defaultdict(set), defaultdict(set)
    for parts in folders:
        outer_of[parts[inner]].add(parts[outer])
        inner_of[parts[outer]].add(parts[inner])
    recurrence = sum(map(len, outer_of.values())) / len(outer_of)  # folders that an inner name is in, on average
    if recurrence > 1 and recurrence >= len(inner_of) / 2 and len(outer_of) <= len(inner_of):
        return inner, outer
    grouped = all(len(own) > 1 for own in inner_of.values())
    return outer, inner if grouped else None
