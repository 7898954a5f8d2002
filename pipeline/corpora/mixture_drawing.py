"""Drawing of mixtures: folds of sources where none are published, and which sounds are mixed at which levels."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

from pipeline.corpora.base import reject
from pipeline.corpora.splitting import first_linked
from pipeline.seeding import named_generator, named_seed


class SourceRow(TypedDict):
    """Columns of a clip of the source corpus that mixtures need."""

    clip_id: str
    source: str  # file below the root
    member: str
    labels: list[str]
    start: float  # seconds
    duration: float  # seconds; 0 = to the end
    group: str  # empty = its source
    fold: str  # empty = none published


class Source(NamedTuple):
    """A clip that is mixed."""

    clip_id: str
    path: Path
    digest: str  # of the file
    start: float  # seconds
    duration: float  # seconds; 0 = to the end
    label: str
    fold: str


class Mixture(NamedTuple):
    """Sounds that are played together; of one sound, that alone."""

    clip_id: str
    fold: str
    sources: tuple[Source, ...]
    gains: tuple[float, ...]  # dB, of each sound's mean power
    places: tuple[float, ...]  # 0 to 1: of the silence that a shorter sound leaves, the part that is before it


def draw_mixtures(
    sources: Sequence[Source], fold: str, *, count: int, sounds: tuple[int, int], gain: float, seed: int
) -> list[Mixture]:
    """Draw mixtures of clips of one fold; none where these have one class.

    Classes take turns, so that each is in as many mixtures as others, and more by chance; the others are drawn alike.
    """
    by_class: dict[str, list[Source]] = defaultdict(list)
    for source in sorted(sources):
        by_class[source.label].append(source)
    classes = sorted(by_class)
    least, most = (min(number, len(classes)) for number in sounds)
    drawn = []
    for number in range(count) if len(classes) > 1 else ():
        random = named_generator(seed, "mixture", fold, number)
        others = [name for name in classes if name != classes[number % len(classes)]]
        size = int(random.integers(least, most + 1))
        chosen = [classes[number % len(classes)], *random.choice(others, size - 1, replace=False).tolist()]
        parts = tuple(by_class[name][int(random.integers(len(by_class[name])))] for name in chosen)
        gains, places = random.uniform(-gain, gain, size), random.uniform(0, 1, size)
        drawn.append(
            Mixture(f"mixture-{fold}-{number:04d}", fold, parts, tuple(gains.tolist()), tuple(places.tolist()))
        )
    return drawn


def assign_folds(
    rows: Sequence[SourceRow], digests: Sequence[str], num_folds: int, seed: int, where: Path
) -> list[str]:
    """Return the fold of each clip (a row of its corpus): the published one, or where there are none one that is drawn.

    Groups are dealt out in random order, the classes one after another, so that every fold gets its share of each; those
    that share a file, by the digests of the clips' files, are dealt together. Raises CorpusError, which names `where`, for
    published folds that share one.
    """
    if any(row["fold"] for row in rows):
        first: dict[str, str] = {}
        shared = [
            row["clip_id"]
            for row, file in zip(rows, digests, strict=True)
            if first.setdefault(file, row["fold"]) != row["fold"]
        ]
        reject(where, {"source clips whose file is in another fold too; take one out": shared})
        return [row["fold"] for row in rows]
    joined = first_linked(
        (f"group {row['group'] or row['source']}", f"file {file}") for row, file in zip(rows, digests, strict=True)
    )
    units = [joined[f"file {file}"] for file in digests]
    labels = {unit: row["labels"][0] for unit, row in reversed(list(zip(units, rows, strict=True)))}
    order = sorted(labels, key=lambda unit: (labels[unit], named_seed(seed, "fold", unit)))
    dealt = {unit: str(place % num_folds + 1) for place, unit in enumerate(order)}
    return [dealt[unit] for unit in units]
