"""Rows of a published classifier for the classes of a corpus, by their names.

A network that begins with the rows of, say, AudioSet's instruments predicts these before it is trained: its logits are those
rows of the published model's, since the head's norm is taken over with them.
"""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from pipeline.corpora.audioset_files import read_classes
from pipeline.errors import SonolexError

# By the corpus's names, or by a mapping from these to the weights' names; classes that it leaves out have their own name.
# None = the whole head where it is for as many classes, else a new one.
ClassRows: TypeAlias = Literal["by_name"] | dict[str, str] | None

_AUDIOSET = Path(__file__).parents[3] / "metadata" / "audioset" / "class_labels_indices.csv"
_NUM_AUDIOSET_CLASSES = 527
_SUGGESTED = 3  # names beside one that is not there


def audioset_names(count: int, where: str) -> list[str]:
    """Return AudioSet's names for weights without names of their `count` classes. Raises SonolexError for another count."""
    if count == _NUM_AUDIOSET_CLASSES and _AUDIOSET.is_file():
        return read_classes(_AUDIOSET)[1]
    raise SonolexError(
        f"pretrained.classes: {where}: expected the {_NUM_AUDIOSET_CLASSES} classes of AudioSet, whose names are in "
        f"{_AUDIOSET}, found {count} classes without names; write the model as a Hugging Face folder, whose config.json "
        "names them, or set pretrained.classes to null"
    )


def find_rows(rows: Literal["by_name"] | Mapping[str, str], classes: Sequence[str], names: Sequence[str]) -> list[int]:
    """Return the row of each class of a corpus in a classifier of the classes `names`.

    Upper and lower case, and `_` for a space, make no difference. Raises SonolexError with the nearest names of each class
    that the classifier has not, and for a mapping of a class that the corpus has not.
    """
    mapping = {} if rows == "by_name" else dict(rows)
    if unknown := [name for name in mapping if name not in classes]:
        raise SonolexError(
            f"pretrained.classes: expected classes of the corpus ({', '.join(classes[:8])}, ...), found "
            f"{', '.join(map(repr, unknown))}; correct the keys of the mapping"
        )
    places = {_plain(name): row for row, name in reversed(list(enumerate(names)))}
    wanted = {name: mapping.get(name, name) for name in classes}
    missing = [_missing(name, theirs, places, names) for name, theirs in wanted.items() if _plain(theirs) not in places]
    if missing:
        example = next(name for name, theirs in wanted.items() if _plain(theirs) not in places)
        raise SonolexError(
            f"pretrained.classes: expected classes among the {len(names)} of the weights, found none for "
            f"{'; '.join(missing)}; name theirs in a mapping, "
            f"pretrained.classes={{{example}: NAME}}, or set pretrained.classes to null"
        )
    return [places[_plain(theirs)] for theirs in wanted.values()]


def find_shared_rows(
    rows: Literal["by_name"] | Mapping[str, str], classes: Sequence[str], names: Sequence[str]
) -> list[int | None]:
    """Return the row of each class of a corpus as `find_rows`, and None for a class that only the corpus has.

    Raises SonolexError where not one class has a row, and for a class that a mapping names and the classifier has not.
    """
    mapping = {} if rows == "by_name" else dict(rows)
    known = {_plain(name) for name in names}
    shared = [name for name in classes if name in mapping or _plain(name) in known]
    if not shared or not set(mapping) <= set(classes):
        find_rows(rows, classes, names)  # raises
    found = dict(zip(shared, find_rows(rows, shared, names), strict=True))
    return [found.get(name) for name in classes]


def _missing(name: str, theirs: str, places: Mapping[str, int], names: Sequence[str]) -> str:
    plain = _plain(theirs)
    close = difflib.get_close_matches(plain, places, n=_SUGGESTED, cutoff=0.5)
    close += [other for other in places if plain in other and other not in close]
    nearest = ", ".join(names[places[other]] for other in close[:_SUGGESTED])
    return (
        f"{name if name == theirs else f'{name}: {theirs}'} ({f'nearest: {nearest}' if nearest else 'nothing is near'})"
    )


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())
