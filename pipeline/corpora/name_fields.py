r"""Fields of file names: a regular expression for label and group, from names such as `7_jackson_32` and `dog12`.

The first field that recurs is the label; a field of words that recurs with every label is the group.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

_SEPARATORS = ("_", "-", " ", ".")
_FEWEST = 0.9  # of the names must have as many fields as most
_FEWEST_CLIPS = 3  # of a label, on average
_WORD_AND_NUMBER = re.compile(r"(?P<label>[^\W\d]+(?:[ _-][^\W\d]+)*)[ _-]?\(?\d+\)?")


class Fields(NamedTuple):
    """An expression for names, and what it was chosen from."""

    pattern: str
    label: int  # number of the field, from 0
    group: int | None
    examples: tuple[str, ...]  # of each field, some values


def choose_pattern(names: Sequence[str]) -> Fields | None:
    """Return the expression for names without their endings; None where no part of them recurs as labels do."""
    for separator in _SEPARATORS:
        found = _by_separator(names, separator)
        if found is not None:
            return found
    labels = [match["label"] for name in names if (match := _WORD_AND_NUMBER.fullmatch(name))]
    if len(labels) < _FEWEST * len(names) or not _is_label(labels):
        return None
    return Fields(_WORD_AND_NUMBER.pattern, 0, None, (_some(labels),))


def _by_separator(names: Sequence[str], separator: str) -> Fields | None:
    rows = [name.split(separator) for name in names]
    width = Counter(map(len, rows)).most_common(1)[0][0]
    rows = [row for row in rows if len(row) == width and all(row)]
    if width < 2 or len(rows) < _FEWEST * len(names):
        return None
    columns = list(zip(*rows, strict=True))
    label = next((place for place, column in enumerate(columns) if _is_label(column)), None)
    if label is None:
        return None
    group = next(
        (place for place in range(width) if place != label and _is_group(columns[label], columns[place])), None
    )
    return Fields(_expression(width, separator, label, group), label, group, tuple(map(_some, columns)))


def _is_label(values: Sequence[str]) -> bool:
    """Return whether values recur as labels do: more than one, each of several clips."""
    counts = Counter(values)
    return len(counts) > 1 and len(values) >= _FEWEST_CLIPS * len(counts)


def _is_group(labels: Sequence[str], values: Sequence[str]) -> bool:
    """Return whether values are words that recur, several with each label: numbers rather count the takes."""
    groups = defaultdict(set)
    for label, value in zip(labels, values, strict=True):
        groups[label].add(value)
    words = any(not value.isdecimal() for value in values)
    return words and len(set(values)) < len(values) and all(len(own) > 1 for own in groups.values())


def _expression(width: int, separator: str, label: int, group: int | None) -> str:
    field, between = f"[^{separator}]+", r"\." if separator == "." else separator
    names = {label: "label", group: "group"}
    fields = [f"(?P<{names[place]}>{field})" if place in names else field for place in range(width)]
    return between.join(fields)


def _some(values: Sequence[str]) -> str:
    """Return some distinct values, for people."""
    found = sorted(set(values), key=lambda value: (len(value), value))
    return ", ".join(found[:3]) + (f", ... ({len(found)} values)" if len(found) > 3 else "")
