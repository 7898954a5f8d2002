"""Remarks on settings of models and vocabularies that have no effect, since another in the same mapping has some value.

Only settings that differ from their kind's default (`recipes/defaults.yaml`) are named: nobody has asked for the others. The
training warns of settings of `train` that a model does not support, and what contradicts another is refused
(`pipeline/check_params.py`).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from pipeline.check_params import Experiment
from pipeline.errors import spell
from tools.kind_defaults import KIND, PLACES, Defaults, find_choice, place_below


class Idle(NamedTuple):
    """Settings without effect in a mapping of one kind, beside a value of another setting."""

    section: str  # of the defaults
    kind: str
    beside: str
    value: object
    keys: tuple[str, ...]


IDLE: Sequence[Idle] = (
    Idle("vocabularies", "neural", "quantiser", "fsq", ("codebook_dim", "commitment")),
    Idle("models", "texture_statistics", "mixtures", 0, ("mixture_gain",)),
    Idle("inputs", "frames", "normalisation", "none", ("std_scale",)),
    Idle("inputs", "tokens", "embedding", "centroids", ("embedding_width",)),
    Idle("stems", "textures", "window", None, ("hop",)),
    Idle("heads", "deep", "hidden", [], ("dropout",)),
    Idle("heads", "per_class", "hidden", [], ("dropout",)),
    Idle("heads", "flatten", "hidden", [], ("dropout",)),
)


def idle_remarks(document: Mapping[str, object], experiment: Experiment, defaults: Defaults) -> list[str]:
    """Name the settings without effect in the entries of a params document that its experiment has."""
    grid = experiment.sections["experiment"]
    entries = {"vocabularies": grid.vocabularies, "models": grid.entries}
    remarks: list[str] = []
    for section, names in entries.items():
        mapping = document[section]
        assert isinstance(mapping, Mapping)  # as the experiment was read from it
        place = place_below(PLACES, document, section)
        for name in names:
            below = place_below(place, mapping, name)
            remarks += _remarks(mapping[name], below, f"{section}.{name}", defaults)
    return remarks


def _remarks(mapping: Mapping[str, object], place: object, where: str, defaults: Defaults) -> Iterator[str]:
    """Yield what has no effect in a mapping at this place and in those within it."""
    if choice := find_choice(place):
        kind = str(mapping[KIND])
        default = {key: source[key] for source, key in defaults.items(choice, kind)}
        for idle in IDLE:
            if (idle.section, idle.kind) == (choice.section, kind) and mapping[idle.beside] == idle.value:
                for key in idle.keys:
                    if mapping[key] != default.get(key, mapping[key]):
                        yield (
                            f"{where}.{key}: expected its default, {spell(default[key])}, while {idle.beside} is "
                            f"{spell(idle.value)}, found {spell(mapping[key])}: no effect"
                        )
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from _remarks(value, place_below(place, mapping, key), f"{where}.{key}", defaults)
