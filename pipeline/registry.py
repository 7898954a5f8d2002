"""Registries: lazily loaded modules and classes by the names that a `kind` in params.yaml may have.

An entry names its target as text and imports it on access, so that a run loads only what its params choose, and code
identity (`pipeline/execution/code.py`) follows only the chosen entries: a new entry that no params name changes no result
and reruns no stage.

    STEMS = Registry("stem", {"patches": "pipeline.models.stems.patches", "linear": "pipeline.models.stems.linear"})

    class Params(pipeline.params.Params):
        stem: Annotated[StemParams, STEMS.params]  # validated as the `Params` of the module that its `kind` names
"""

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema
from typing_extensions import TypeVar

T_co = TypeVar("T_co", covariant=True, default=Any)


class HasParams(Protocol):
    """An entry that a section of params.yaml chooses by its `kind`."""

    @property
    def Params(self) -> type[BaseModel]:  # noqa: N802 - a class
        """The class of the section."""


class Registry(Mapping[str, T_co]):
    """Mapping from kind to the target `package.module` or `package.module:Name`, loaded on access.

    Targets are literals in the call, since code identity reads them from the source. An annotation states their type:

        STEMS: "Registry[type[Stem]]" = Registry("stem", {...})
    """

    def __init__(self, what: str, targets: Mapping[str, str]) -> None:
        """Set the name of the registered things, for messages, and kind -> target."""
        self.what, self.targets = what, dict(targets)

    def __getitem__(self, kind: str) -> T_co:
        module, _, name = self.targets[kind].partition(":")
        loaded: Any = importlib.import_module(module)
        entry: T_co = getattr(loaded, name) if name else loaded
        return entry

    def __contains__(self, kind: object) -> bool:
        return kind in self.targets  # without loading it

    def __iter__(self) -> Iterator[str]:
        return iter(self.targets)

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def params(self: "Registry[HasParams]") -> "RegistryParams":
        """Return the annotation of a section that chooses an entry by its key `kind`."""
        return RegistryParams(self)


@dataclass(frozen=True)
class RegistryParams:
    """Pydantic annotation of a section that is validated by the `Params` of the entry that its `kind` names."""

    registry: Registry[HasParams]

    @property
    def members(self) -> list[type[BaseModel]]:
        """Return the Params class of every entry."""
        return [self.registry[kind].Params for kind in self.registry]

    def __get_pydantic_core_schema__(self, _source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = {kind: handler.generate_schema(self.registry[kind].Params) for kind in self.registry}
        return core_schema.tagged_union_schema(choices, discriminator="kind")

    def __hash__(self) -> int:
        return id(self.registry)


def collect(package: str, name: str, *, first: str) -> dict[str, Any]:
    """Return module -> what it defines as `name`, for every module of a package: the one called `first`, then by alphabet.

    For what every run uses, so that no params choose: a new file in the package is found without an entry anywhere. The
    package and the name are literals in the call, since code identity follows these definitions of all modules.
    """
    folder = importlib.import_module(package).__path__
    modules = sorted(
        (found.name for found in pkgutil.iter_modules(folder)), key=lambda module: (module != first, module)
    )
    collected = {}
    for module in (f"{package}.{module}" for module in modules):
        try:
            collected[module] = getattr(importlib.import_module(module), name)
        except AttributeError:
            raise AttributeError(
                f"{module}: expected a definition of {name}, found none; see {package}.{first}"
            ) from None
    return collected
