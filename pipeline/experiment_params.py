"""The section `experiment`: which models are trained, on which folds, with which seeds."""

from typing import Self

from pydantic import Field, NonNegativeInt, model_validator

from pipeline.artifacts.layout import ModelId
from pipeline.params import Params

_LISTS = "frame_models, token_models and pretrained_models"


class EnsembleParams(Params):
    """Models whose predictions, of all seeds, are averaged."""

    name: str  # in tables and paths, as a model's
    models: list[str] = Field(min_length=1)  # of the experiment; one alone makes an ensemble of its seeds


class ExperimentParams(Params):
    """The grid of the experiment: every model on every fold with every seed, and what is averaged of it."""

    frame_models: list[str]  # entries of `models` that read log-mel frames
    token_models: list[str]  # entries of `models` that read tokens, each those of every vocabulary
    pretrained_models: list[str]  # such entries, which learn from sentences without labels before they are trained
    vocabularies: list[str]  # entries of `vocabularies`, each learnt anew for every fold
    folds: list[str] = Field(min_length=1)  # folds of the corpus that are tested on, one after the other
    seeds: list[NonNegativeInt] = Field(min_length=1)
    ensembles: list[EnsembleParams]  # the first is in results/metrics.json

    @property
    def model_ids(self) -> list[ModelId]:
        """All models: those that read frames, those that read tokens, and those that start from pretraining."""
        return [
            *(ModelId(entry) for entry in self.frame_models),
            *(ModelId(entry, name) for entry in self.token_models for name in self.vocabularies),
            *(ModelId(entry, name, pretrained=True) for entry in self.pretrained_models for name in self.vocabularies),
        ]

    @property
    def models(self) -> list[str]:
        """The names of all models in paths and tables."""
        return [model.name for model in self.model_ids]

    @property
    def reads(self) -> dict[str, str]:
        """The models that read tokens, with the vocabulary of each."""
        return {model.name: model.vocabulary for model in self.model_ids if model.vocabulary}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.models:
            raise ValueError(f"{_LISTS}: expected at least one model in any, found none")
        if (self.token_models or self.pretrained_models) and not self.vocabularies:
            raise ValueError("vocabularies: expected at least one for the models of tokens to read, found none")
        ensembles = [ensemble.name for ensemble in self.ensembles]
        once: list[tuple[str, list[str] | list[int]]] = [
            ("frame_models and token_models", [*self.frame_models, *self.token_models]),
            ("pretrained_models", self.pretrained_models),
            ("vocabularies", self.vocabularies),
            ("folds", self.folds),
            ("seeds", self.seeds),
            ("ensembles, and models beside them", [*self.models, *ensembles]),
            *((f"ensembles: models of {ensemble.name}", ensemble.models) for ensemble in self.ensembles),
        ]
        for keys, values in once:
            repeated = sorted({str(value) for value in values if list(values).count(value) > 1})
            if repeated:
                raise ValueError(f"{keys}: expected each entry once, found {', '.join(repeated)} again")
        for ensemble in self.ensembles:
            unknown = [name for name in ensemble.models if name not in self.models]
            if unknown:
                known = f"models of the experiment ({', '.join(self.models)})"
                raise ValueError(f"ensembles: expected {ensemble.name} to name {known}, found {', '.join(unknown)}")
        for key, names in (
            ("models", self.models),
            ("vocabularies", self.vocabularies),
            ("ensembles", ensembles),
            ("folds", self.folds),
        ):
            for name in names:
                if not name or any(sign in name for sign in "/\\@. "):
                    raise ValueError(
                        f"{key}: expected names without / \\ @ . or spaces (they become paths), found {name!r}"
                    )
        return self
