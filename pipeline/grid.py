"""The section `experiment`: the grid of models, folds and seeds, and ensembles."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import product
from operator import attrgetter, methodcaller
from typing import Self

from pydantic import Field, NonNegativeInt, model_validator

from pipeline.artifacts.layout import PRETRAINED_SUFFIX, ModelId, RunId
from pipeline.errors import ParamsError
from pipeline.params import NameParam, Params

_LISTS = "frame_models, token_models and pretrained_models"


class EnsembleParams(Params):
    """Models whose predictions, of all seeds, are averaged."""

    name: NameParam  # in tables and paths, like a model's
    models: list[str] = Field(min_length=1)  # of the experiment; a single one gives an ensemble of its seeds


class LearnedVocabularyParams(Params):
    """A vocabulary that is fitted on hidden states, and the model whose they are; dvc.yaml takes the dependency from it."""

    vocabulary: NameParam  # of the experiment, with features.hidden_states
    model: str = Field(min_length=1)  # of the experiment, as features.hidden_states.model has it


class ExperimentParams(Params):
    """The grid of the experiment: every model on every fold with every seed, and the ensembles."""

    frame_models: list[NameParam]  # entries of `models` that read log-mel frames
    token_models: list[NameParam]  # entries of `models` that read tokens, each with every vocabulary
    pretrained_models: list[NameParam]  # such entries that are also trained after masked-token pretraining
    vocabularies: list[NameParam]  # entries of `vocabularies`, each fitted for every fold
    supervised_vocabularies: list[NameParam]  # such entries that are fitted on labels: those with features.lda
    learned_vocabularies: list[LearnedVocabularyParams]  # such entries with features.hidden_states, each with its model
    folds: list[NameParam] = Field(min_length=1)  # folds of the corpus, each the test fold once
    seeds: list[NonNegativeInt] = Field(min_length=1)
    ensembles: list[EnsembleParams]  # the first one is in results/metrics.json

    @property
    def token_entries(self) -> list[str]:
        """Entries of `models` that are trained on tokens, pretrained or not, each once."""
        return list(dict.fromkeys([*self.token_models, *self.pretrained_models]))

    @property
    def entries(self) -> list[str]:
        """Entries of `models` that are trained, each once."""
        return [*self.frame_models, *self.token_entries]

    @property
    def model_ids(self) -> list[ModelId]:
        """All models: first those that read frames, then those that read tokens, then the pretrained ones."""
        plain = product(self.token_models, self.vocabularies)
        pretrained = product(self.pretrained_models, self.vocabularies)
        return [
            *map(ModelId, self.frame_models),
            *(ModelId(entry, vocabulary) for entry, vocabulary in plain),
            *(ModelId(entry, vocabulary, pretrained=True) for entry, vocabulary in pretrained),
        ]

    @property
    def models(self) -> list[str]:
        """Names of all models, in the order of `model_ids`."""
        return [model.name for model in self.model_ids]

    def model(self, name: str) -> ModelId:
        """Return the model of a name in tables. Raises ParamsError for one that is none of the experiment's."""
        require_listed(
            name,
            self.models,
            "features.hidden_states.model: expected a model of the experiment",
            "add it to experiment",
        )
        return next(model for model in self.model_ids if model.name == name)

    @property
    def reads(self) -> dict[str, str]:
        """Names of the models that read tokens, and of their variants, with the vocabulary of each."""
        read_tokens = [model for model in self.model_ids if model.vocabulary]
        return {own.name: own.vocabulary for model in read_tokens for own in (model, *model.variants)}

    def runs(self) -> list[RunId]:
        """Return all training runs: every model on every fold with every seed."""
        return [RunId(model, fold, seed) for model, fold, seed in product(self.model_ids, self.folds, self.seeds)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.entries:
            raise ValueError(f"{_LISTS}: expected at least one model in any, found none")
        if self.token_entries and not self.vocabularies:
            raise ValueError("vocabularies: expected at least one for the models that read tokens, found none")
        once: list[tuple[str, list[str] | list[int]]] = [
            ("frame_models and token_models", [*self.frame_models, *self.token_models]),
            ("pretrained_models", self.pretrained_models),
            ("vocabularies", self.vocabularies),
            ("supervised_vocabularies", self.supervised_vocabularies),
            ("learned_vocabularies", [entry.vocabulary for entry in self.learned_vocabularies]),
            ("folds", self.folds),
            ("seeds", self.seeds),
            *((f"ensembles: models of {ensemble.name}", ensemble.models) for ensemble in self.ensembles),
        ]
        for keys, values in once:
            repeated = sorted({str(value) for value in values if list(values).count(value) > 1})
            if repeated:
                raise ValueError(f"{keys}: expected each entry once, found {', '.join(repeated)} again")
        self._check_joined_names()
        for ensemble in self.ensembles:
            unknown = [name for name in ensemble.models if name not in self.models]
            if unknown:
                known = f"models of the experiment ({', '.join(self.models)})"
                raise ValueError(f"ensembles: expected {ensemble.name} to name {known}, found {', '.join(unknown)}")
        return self

    def _check_joined_names(self) -> None:
        """Raise ValueError where joined names are ambiguous: two runs would share a path, or an item of dvc.yaml."""
        entries = {*self.entries, *self.vocabularies}
        if reserved := sorted(name for name in entries if f"-{name}".endswith(PRETRAINED_SUFFIX)):
            raise ValueError(
                f"expected names of models and vocabularies without the suffix {PRETRAINED_SUFFIX} of pretrained models, "
                f"found {', '.join(reserved)}; rename them, here and in their section"
            )
        ensembles = [(ensemble.name, f"the ensemble {ensemble.name}") for ensemble in self.ensembles]
        _require_different([(model.name, _describe(model)) for model in self.model_ids] + ensembles)
        _require_different(
            (f"{name}-{fold}", f"fold {fold} of the vocabulary {name}")
            for name, fold in product(self.vocabularies, self.folds)
        )
        for name in (attrgetter("name"), methodcaller("stage", "train")):
            _require_different(
                (name(run), f"seed {run.seed} on fold {run.fold} of {_describe(run.model)}") for run in self.runs()
            )


def require_listed(name: str, names: Sequence[str], expected: str, advice: str) -> None:
    """Raise ParamsError unless a name is one of a list; `expected` is the setting and what it takes."""
    if name not in names:
        known = ", ".join(dict.fromkeys(names)) or "none"
        raise ParamsError(f"{expected} ({known}), found {name!r}; {advice}")


def _describe(model: ModelId) -> str:
    pretrained = ", pretrained" if model.pretrained else ""
    return f"the model {model.entry}" + (
        f" with the vocabulary {model.vocabulary}{pretrained}" if model.vocabulary else ""
    )


def _require_different(named: Iterable[tuple[str, str]]) -> None:
    """Raise ValueError when two of (name, description) have the same name."""
    meanings: defaultdict[str, list[str]] = defaultdict(list)
    for name, meaning in named:
        meanings[name].append(meaning)
    for name, found in meanings.items():
        if len(found) > 1:
            raise ValueError(
                f"expected names that differ once joined, found {name} for {' and for '.join(found)}; rename one"
            )
