"""Defaults of every kind that a mapping of params.yaml may have, and the places in params where they apply.

Conventions: a *place* is the annotation of a value of params.yaml, as the Params classes have it; None where they have none.
A *choice* is a place whose mapping has one of several kinds, and so a section of the defaults (`recipes/defaults.yaml`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, get_args, get_origin

from pydantic.fields import FieldInfo
from ruamel.yaml.comments import CommentedMap

from pipeline.check_params import SECTIONS as PARAMS
from pipeline.corpora.registry import CorpusParams
from pipeline.evaluation.thresholds import ThresholdParams
from pipeline.models.positions import PositionsParams
from pipeline.models.registry import (
    BASELINES,
    CHECKPOINT_FORMATS,
    ENCODERS,
    HEADS,
    INPUTS,
    NETWORKS,
    STEMS,
    TEXTURE_INPUTS,
)
from pipeline.params import field_annotation, fields_of, members
from pipeline.spectrogram.registry import FrontEndParams
from pipeline.training.averaging import AverageParams
from pipeline.training.loss_settings import LossParams
from pipeline.training.optimiser import OptimiserParams
from pipeline.training.schedules import ScheduleParams
from pipeline.vocabulary.registry import VocabularyParams

KIND = "kind"
EVERY_KIND = "*"  # of a section: what several of its kinds have

_MODEL = Annotated[Any, NETWORKS.params] | Annotated[Any, BASELINES.params]

# Section of the defaults -> the annotation of what it has the kinds of.
CHOICES: dict[str, object] = {
    "corpora": CorpusParams,
    "front_ends": FrontEndParams,
    "vocabularies": VocabularyParams,
    "models": _MODEL,
    "texture_inputs": Annotated[Any, TEXTURE_INPUTS.params],
    "inputs": Annotated[Any, INPUTS.params],
    "stems": Annotated[Any, STEMS.params],
    "positions": PositionsParams,
    "encoders": Annotated[Any, ENCODERS.params],
    "heads": Annotated[Any, HEADS.params],
    "checkpoint_formats": Annotated[Any, CHECKPOINT_FORMATS.params],
    "schedules": ScheduleParams,
    "optimisers": OptimiserParams,
    "averages": AverageParams,
    "losses": LossParams,
    "thresholds": ThresholdParams,
}

# Section of params.yaml -> its place.
PLACES: dict[str, object] = {**PARAMS, "vocabularies": dict[str, VocabularyParams], "models": dict[str, _MODEL]}


@dataclass(frozen=True)
class Choice:
    """The kinds that one mapping of params.yaml may have."""

    section: str  # of the defaults
    kinds: Mapping[str, Mapping[str, FieldInfo]]  # kind -> key -> field, `kind` first


class Defaults:
    """The file of defaults, by section and kind."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        """Take the file's sections: kind -> key -> value."""
        self._sections = document

    def kind(self, choice: Choice) -> str | None:
        """Return the kind of a mapping that names none, if there is one."""
        kind: str | None = self._common(choice).get(KIND)
        return kind

    def items(self, choice: Choice, kind: str) -> Iterator[tuple[CommentedMap, str]]:
        """Yield where each default of a kind stands, as (mapping, key), in the order of the kind's fields."""
        own = self._sections.get(choice.section, {}).get(kind, {})
        for key in choice.kinds[kind]:
            for mapping in (own, self._common(choice)):
                if key != KIND and key in mapping:
                    yield mapping, key
                    break

    def _common(self, choice: Choice) -> CommentedMap:
        common: CommentedMap = self._sections.get(choice.section, {}).get(EVERY_KIND, CommentedMap())
        return common


def find_choice(place: object) -> Choice | None:
    """Return the choice at a place; None where a mapping has one form."""
    if place is PLACES:
        return None
    return next((choice for form in members(place) if (choice := _by_form().get(form))), None)


def place_below(place: object, mapping: Mapping[str, object], key: str) -> object:
    """Return the place of the value at `key` of a mapping at `place`; PLACES is that of the whole file."""
    if place is PLACES:
        return PLACES.get(key)
    if choice := find_choice(place):
        fields = choice.kinds.get(str(mapping.get(KIND)), {})
    else:
        form, *others = members(place)
        if get_origin(form) is dict:
            return get_args(form)[1]
        fields = {} if others else fields_of(form)
    return field_annotation(fields[key]) if key in fields else None


@cache
def _by_form() -> dict[object, Choice]:
    """Return the choice that each Params class is a kind of."""
    found: dict[object, Choice] = {}
    for section, annotation in CHOICES.items():
        forms = members(annotation)
        kinds = {kind: _fields(form) for form in forms for kind in get_args(fields_of(form)[KIND].annotation)}
        found |= dict.fromkeys(forms, Choice(section, kinds))
    return found


def _fields(form: object) -> dict[str, FieldInfo]:
    fields = fields_of(form)
    return {KIND: fields[KIND]} | fields
