"""The registry of vocabulary kinds: what `kind` of an entry of `vocabularies` may say, and the module behind each.

A kind is one file, with what `VocabularyKind` in `pipeline/vocabulary/base.py` asks for, and a line in `KINDS`. It is
imported when params or an artifact name it.
"""

from pathlib import Path
from typing import Annotated, Any

from pipeline.errors import ParamsError, spell
from pipeline.params import PARAMS_PATH, read_params, validate_params
from pipeline.registry import Registry
from pipeline.vocabulary.base import VocabularyKind

KINDS: "Registry[VocabularyKind]" = Registry(
    "vocabulary",
    {
        "kmeans": "pipeline.vocabulary.kmeans",
        "bands": "pipeline.vocabulary.bands",
        "residual": "pipeline.vocabulary.residual",
        "soft_kmeans": "pipeline.vocabulary.soft_kmeans",
        "random_projection": "pipeline.vocabulary.random_projection",
        "neural": "pipeline.vocabulary.neural",
        "external": "pipeline.vocabulary.external",
    },
)

VocabularyParams = Annotated[Any, KINDS.params]  # the Params of one of the kinds


def load_vocabulary_params(name: str, path: Path = PARAMS_PATH) -> VocabularyParams:
    """Load the section `vocabularies.<name>` as the Params of its kind. Raises ParamsError."""
    vocabularies = read_params(path).get("vocabularies") or {}
    if name not in vocabularies:
        found = ", ".join(vocabularies)
        raise ParamsError(f"{path}: vocabularies.{name}: expected a section of this name, found only: {found}")
    return validate_vocabulary_params(name, vocabularies[name], path)


def validate_vocabulary_params(name: str, value: object, path: Path = PARAMS_PATH) -> VocabularyParams:
    """Check one vocabulary's plain section."""
    kind = value.get("kind") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        found = "none" if kind is None else spell(kind)
        raise ParamsError(f"{path}: vocabularies.{name}.kind: expected one of {', '.join(KINDS)}, found {found}")
    return validate_params(KINDS[kind].Params, value, f"vocabularies.{name}", path)
