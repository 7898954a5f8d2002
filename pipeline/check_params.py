"""Validation of a whole params.yaml: every section against its class, and the rules between sections.

The stage `code` always runs first and checks the whole file here, so that a typo in the last section costs seconds and not
the stages before it. All mistakes are reported together.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, TypedDict, TypeVar, cast, get_type_hints

from pipeline.artifacts.model import Reads
from pipeline.corpora.registry import CorpusParams
from pipeline.corpora.splitting import SplitParams
from pipeline.duplicates.settings import DuplicateParams
from pipeline.errors import ParamsError, spell
from pipeline.evaluation.enhancement import LabelParams
from pipeline.evaluation.thresholds import ThresholdParams, require_several_labels
from pipeline.execution.executors import ExecutionParams
from pipeline.execution.launch import LaunchParams
from pipeline.grid import ExperimentParams
from pipeline.models.base import ModelParams, VocabularySection
from pipeline.models.registry import ENCODERS, validate_model_params
from pipeline.params import PARAMS_PATH, read_params, validate_params
from pipeline.reporting.atlas.settings import AtlasParams
from pipeline.reporting.report_settings import ReportParams
from pipeline.spectrogram.front_end import FrontEndSection
from pipeline.spectrogram.settings import SpectrogramParams
from pipeline.training.augmentation.settings import AugmentationParams
from pipeline.training.families import read_families
from pipeline.training.loss_settings import families_of, require_label_kind
from pipeline.training.settings import PretrainParams, TrainParams
from pipeline.vocabulary.registry import validate_vocabulary_params


class Sections(TypedDict):
    """Every section but `models` and `vocabularies`."""

    experiment: ExperimentParams
    corpus: CorpusParams
    labels: LabelParams
    split: SplitParams
    spectrogram: SpectrogramParams
    duplicates: DuplicateParams
    pretrain: PretrainParams
    train: TrainParams
    thresholds: ThresholdParams
    report: ReportParams
    atlas: AtlasParams
    execution: ExecutionParams
    launch: LaunchParams


SECTIONS = get_type_hints(Sections, include_extras=True)  # section -> its Params

T = TypeVar("T")

_MAPPINGS = ("vocabularies", "models")  # sections whose entries experiments name


@dataclass(frozen=True)
class Experiment:
    """All sections of a params file, validated."""

    sections: Sections
    models: dict[str, ModelParams]  # entry of `models` -> its section
    vocabularies: dict[str, VocabularySection]  # entry of `vocabularies` -> its Params


def load_experiment(path: Path = PARAMS_PATH) -> Experiment:
    """Read and check a whole params file. Raises one ParamsError that names every mistake in it."""
    document = read_params(path)
    check = _Check(_unknown_sections(document, path))
    models = check.entries(document, "models", lambda name, value: validate_model_params(name, value, path))
    vocabularies = check.entries(
        document, "vocabularies", lambda name, value: validate_vocabulary_params(name, value, path)
    )
    # Before the section's own rules: an ensemble of a model whose name is misspelt is not what is wrong.
    check.mistakes += _grid_mistakes(document, models, path)
    sections: dict[str, Any] = {}
    for name, kind in SECTIONS.items():
        if name not in document:
            check.mistakes.append(f"{path}: {name}: expected this section, found none")
            continue
        with check.collecting():
            sections[name] = validate_params(kind, document[name], name, path)
    _check_between(check, sections, models, vocabularies, path)
    if check.mistakes:
        raise ParamsError("\n".join(check.mistakes))
    return Experiment(cast(Sections, sections), models, vocabularies)


@dataclass
class _Check:
    """The mistakes found so far; one does not keep the next from being found."""

    mistakes: list[str]

    @contextmanager
    def collecting(self, before: str = "") -> Iterator[None]:
        """Add the mistake that ends the block, with this text before it."""
        try:
            yield
        except ParamsError as error:
            self.mistakes.append(f"{before}{error}")

    def entries(
        self, document: Mapping[str, object], section: str, validate: Callable[[str, object], T]
    ) -> dict[str, T]:
        """Return the valid entries of a section by name."""
        found = {}
        for name, value in _entries(document, section).items():
            with self.collecting():
                found[name] = validate(name, value)
        return found


def _check_between(
    check: _Check,
    sections: Mapping[str, Any],
    models: Mapping[str, ModelParams],
    vocabularies: Mapping[str, VocabularySection],
    path: Path,
) -> None:
    """Add what does not hold between sections, as far as these are valid."""
    mistakes = check.mistakes
    if "experiment" in sections:
        mistakes += _reading_mistakes(sections["experiment"], models, vocabularies, path)
        mistakes += _supervision_mistakes(sections["experiment"], vocabularies, path)
        mistakes += _hidden_state_mistakes(sections["experiment"], models, vocabularies, path)
    if {"experiment", "train"} <= set(sections) and sections["train"].augmentation.retokenize:
        mistakes += _retokenizing_mistakes(sections["experiment"], models, vocabularies, path)
    if {"experiment", "labels", "split", "report"} <= set(sections):
        with check.collecting(f"{path}: "):
            sections["labels"].check_against(sections["experiment"], sections["split"].num_folds)
            sections["report"].check_against(sections["experiment"])
    if {"experiment", "spectrogram"} <= set(sections):
        mistakes += _front_end_mistakes(
            sections["experiment"], sections["spectrogram"].front_end, models, vocabularies, path
        )
    if {"spectrogram", "duplicates"} <= set(sections):
        front_end = sections["spectrogram"].front_end
        if sections["duplicates"].search and not front_end.has_levels:
            mistakes.append(
                f"{path}: duplicates.search: expected false with spectrogram.front_end.kind {front_end.kind}, whose frames "
                "are no levels of bands that recordings could be compared by, found true; set it to false, or search once "
                "with the front end kaldi"
            )
    if {"experiment", "atlas"} <= set(sections):
        with check.collecting(f"{path}: "):
            sections["atlas"].check_against(sections["experiment"])
        mistakes += _attribution_mistakes(sections["atlas"], models, path)
    if "report" in sections:
        mistakes += _attention_mistakes(sections["report"], models, path)
    if {"experiment", "pretrain", "train"} <= set(sections) and sections["experiment"].pretrained_models:
        with check.collecting():
            sections["pretrain"].settings(sections["train"])
    if "train" in sections and (families := families_of(sections["train"].loss)):
        with check.collecting(f"{path}: "):
            read_families(families.groups)
    label_kind = dict(sections["corpus"]).get("label_kind") if "corpus" in sections else None
    if label_kind and "train" in sections:
        with check.collecting(f"{path}: "):  # other corpora say it in the manifest, and the stages compare
            require_label_kind(sections["train"].loss, label_kind)
    if label_kind and "thresholds" in sections:
        with check.collecting(f"{path}: "):
            require_several_labels(sections["thresholds"], label_kind)
    if {"experiment", "train", "spectrogram"} <= set(sections):
        front_end, augmentation = sections["spectrogram"].front_end, sections["train"].augmentation
        if _augments_frames(sections["experiment"], augmentation):
            mistakes += _samples_mistakes(augmentation, path) if front_end.has_samples else []
            mistakes += _band_mistakes(augmentation, dict(front_end).get("n_mels"), path)
    if {"train", "spectrogram"} <= set(sections) and not sections["spectrogram"].copies:
        mistakes += _copies_mistakes(sections["train"].augmentation, path)
    if {"train", "split"} <= set(sections) and not sections["split"].validation_fraction:
        mistakes += _validation_mistakes(sections, path)


def _augments_frames(grid: ExperimentParams, augmentation: AugmentationParams) -> bool:
    """Return whether models are trained on augmented frames, or on tokens of them."""
    of_tokens = bool(grid.token_entries) and augmentation.retokenize
    return bool(grid.frame_models) or of_tokens


def _validation_mistakes(sections: Mapping[str, Any], path: Path) -> list[str]:
    """Return a message for a setting of training, and of pretraining if there is any, that needs validation clips."""
    chosen = {"train": sections["train"].validated_setting}
    if "corpus" in sections and (kind := dict(sections["corpus"]).get("validate_on")):
        chosen["corpus"] = ("validate_on", "null", kind)
    if {"experiment", "pretrain"} <= set(sections) and sections["experiment"].pretrained_models:
        chosen["pretrain"] = sections["pretrain"].validated_setting
    return [
        f"{path}: {section}.{setting[0]}: expected {setting[1]} while split.validation_fraction is 0, found {setting[2]}"
        for section, setting in chosen.items()
        if setting
    ]


def _unknown_sections(document: Mapping[str, object], path: Path) -> list[str]:
    known = [*SECTIONS, *_MAPPINGS]
    mistakes = []
    for name in document:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean `{close[0]}`? " if close else ""
            mistakes.append(f"{path}: {name}: unknown section; {hint}known sections: {', '.join(known)}")
    mistakes += [f"{path}: {name}: expected this section, found none" for name in _MAPPINGS if name not in document]
    return mistakes + [
        f"{path}: {name}: expected entries, as recipes/base.yaml has them, found {spell(document[name])}"
        for name in _MAPPINGS
        if not isinstance(document.get(name) or {}, dict)
    ]


def _entries(document: Mapping[str, object], section: str) -> dict[str, object]:
    entries = document.get(section)
    return entries if isinstance(entries, dict) else {}


def _names(document: Mapping[str, object], key: str) -> list[str]:
    """Return the names that a list of `experiment` holds, as far as it is one."""
    names = _entries(document, "experiment").get(key)
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _grid_mistakes(document: Mapping[str, object], models: Mapping[str, ModelParams], path: Path) -> list[str]:
    """Return a message for each model or vocabulary of the grid that has no section, and each model in a wrong list."""
    listed, vocabularies = _entries(document, "models"), _entries(document, "vocabularies")
    mistakes = [
        f"{path}: experiment.vocabularies: expected entries of `vocabularies`, found {name}, but vocabularies has only: "
        f"{', '.join(vocabularies)}"
        for name in _names(document, "vocabularies")
        if name not in vocabularies
    ]
    lists: list[tuple[str, Reads, list[str]]] = [
        ("frame_models", "frames", _names(document, "frame_models")),
        ("token_models", "tokens", _names(document, "token_models")),
        ("pretrained_models", "tokens", _names(document, "pretrained_models")),
    ]
    for key, reads, names in lists:
        for name in names:
            if name not in listed:
                found = f"found {name}, but models has only: {', '.join(listed)}"
                mistakes.append(f"{path}: experiment.{key}: expected entries of `models`, {found}")
            elif name in models and models[name].reads != reads:
                other, there = next((other, there) for other, wanted, there in lists if wanted != reads)
                advice = "take it out, it stands" if name in there else "list it"
                mistakes.append(
                    f"{path}: experiment.{key}: expected models that read {reads}, found {name}, which reads "
                    f"{models[name].reads}; {advice} under experiment.{other}"
                )
            elif key == "pretrained_models" and name in models and not models[name].supports_pretraining:
                kinds = ", ".join(kind for kind in ENCODERS if ENCODERS[kind].supports_pretraining)
                mistakes.append(
                    f"{path}: experiment.{key}: expected networks with input.kind tokens and one of the encoders {kinds}, "
                    f"found {name} of kind {models[name].kind}"
                )
            elif key == "pretrained_models" and name in models and models[name].begins_with_weights:
                mistakes.append(
                    f"{path}: experiment.{key}: expected models that begin with the weights of `pretrain` alone, found "
                    f"{name} with others, which these would replace; set models.{name}.pretrained to null, or take it out"
                )
    return mistakes


def _supervision_mistakes(
    experiment: ExperimentParams, vocabularies: Mapping[str, VocabularySection], path: Path
) -> list[str]:
    """Return a message where the vocabularies listed as fitted on labels are not those that read them."""
    expected = [name for name in experiment.vocabularies if name in vocabularies and vocabularies[name].supervised]
    found = experiment.supervised_vocabularies
    if set(found) == set(expected) or not set(experiment.vocabularies) <= set(vocabularies):
        return []
    return [
        f"{path}: experiment.supervised_vocabularies: expected the entries of experiment.vocabularies with features.lda, "
        f"[{', '.join(expected)}], found [{', '.join(found)}]; dvc.yaml reads from this list whose labels to collect"
    ]


def _hidden_state_mistakes(
    experiment: ExperimentParams,
    models: Mapping[str, ModelParams],
    vocabularies: Mapping[str, VocabularySection],
    path: Path,
) -> list[str]:
    """Return a message for each vocabulary of hidden states whose network cannot be had, or that is not listed with it."""
    names = [name for name in experiment.vocabularies if name in vocabularies]
    wanted = {name: hidden.model for name in names if (hidden := vocabularies[name].hidden_states)}
    mistakes = [
        f"{path}: vocabularies.{name}.features.hidden_states.model: {mistake}"
        for name, model in wanted.items()
        if (mistake := _network_mistake(name, model, experiment, models, vocabularies))
    ]
    found = {entry.vocabulary: entry.model for entry in experiment.learned_vocabularies}
    if found != wanted and names == experiment.vocabularies:
        expected, listed = (
            "[" + ", ".join(f"{{vocabulary: {name}, model: {model}}}" for name, model in pairs.items()) + "]"
            for pairs in (wanted, found)
        )
        mistakes.append(
            f"{path}: experiment.learned_vocabularies: expected the entries of experiment.vocabularies with "
            f"features.hidden_states, {expected}, found {listed}; dvc.yaml reads from this list which network to take"
        )
    return mistakes


def _network_mistake(
    name: str,
    model: str,
    experiment: ExperimentParams,
    models: Mapping[str, ModelParams],
    vocabularies: Mapping[str, VocabularySection],
) -> str:
    """Return why a vocabulary cannot be fitted on hidden states of a model, given by its name in tables; "" where it can."""
    found = next((own for own in experiment.model_ids if own.name == model), None)
    if found is None:
        close = difflib.get_close_matches(model, experiment.models, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        return f"expected a model of the experiment ({', '.join(experiment.models)}), found {model}{hint}"
    if found.entry in models and models[found.entry].kind != "network":
        return f"expected a network, which has hidden states, found {model} of kind {models[found.entry].kind}"
    if not found.vocabulary or found.vocabulary not in vocabularies:
        return ""
    before = experiment.vocabularies[: experiment.vocabularies.index(name)]
    if found.vocabulary not in before:
        return (
            f"expected a model on frames, or on a vocabulary that stands before {name} in experiment.vocabularies, found "
            f"{model} on {found.vocabulary}; list {found.vocabulary} first, or take another model"
        )
    section = vocabularies[found.vocabulary]
    if section.bpe is not None or not section.computable:
        what = "merged tokens (bpe), which have no fixed rate" if section.bpe is not None else "tokens of a table"
        return (
            f"expected a model on frames or on plain tokens, which frames have, found {model} on {what}; take another"
        )
    return ""


def _band_mistakes(params: AugmentationParams, num_bands: int | None, path: Path) -> list[str]:
    """Return a message for each setting of augmentation that goes beyond the bands of the frames, if these are known."""
    if num_bands is None:
        return []
    width, shift = params.band_masks.width, max(map(abs, params.band_shift.range))
    points = params.equaliser.bands
    beyond = {
        "band_masks.width": width if params.band_masks.count and width > num_bands else None,
        "band_shift.range": shift if params.band_shift.probability and shift >= num_bands else None,
        "equaliser.bands": points if params.equaliser.probability and points > num_bands else None,
    }
    return [
        f"{path}: train.augmentation.{key}: expected a number within the {num_bands} bands of spectrogram.front_end.n_mels, "
        f"found {found:g}; lower it"
        for key, found in beyond.items()
        if found is not None
    ]


def _samples_mistakes(params: AugmentationParams, path: Path) -> list[str]:
    """Return a message for each setting of augmentation that acts on bands or powers, or on the order of frames alone."""
    return [
        f"{path}: train.augmentation.{key}: expected {none} with spectrogram.front_end.kind waveform, whose frames are "
        f"samples and no levels of bands, found {spell(found)}; set it so"
        for key, none, found in params.unfit_for_samples()
    ]


def _copies_mistakes(params: AugmentationParams, path: Path) -> list[str]:
    """Return a message for training on copies of clips, of which there are none."""
    if not params.copies:
        return []
    return [
        f"{path}: train.augmentation.copies: expected 0 while spectrogram.copies is empty, found {params.copies:g}; set it "
        "to 0, or list copies, such as [{speed: 0.9}, {pitch: 2}]"
    ]


def _retokenizing_mistakes(
    experiment: ExperimentParams,
    models: Mapping[str, ModelParams],
    vocabularies: Mapping[str, VocabularySection],
    path: Path,
) -> list[str]:
    """Return a message for each vocabulary that has no tokens of augmented frames: of merged or of external tokens."""
    if not any(name in models and models[name].kind == "network" for name in experiment.token_entries):
        return []
    where = f"{path}: train.augmentation.retokenize: expected false with vocabulary"
    return [
        f"{where} {name} {reason}, found true; {advice}take {name} out of experiment.vocabularies, or set retokenize to "
        "false"
        for name in experiment.vocabularies
        if name in vocabularies
        for reason, advice in _not_retokenized(name, vocabularies[name])
    ]


def _not_retokenized(name: str, vocabulary: VocabularySection) -> Iterator[tuple[str, str]]:
    """Yield why augmented frames have no tokens of a vocabulary, and what else to set."""
    if vocabulary.bpe is not None:
        yield "of merged tokens (bpe), which have no fixed rate", f"set vocabularies.{name}.bpe to null, "
    if not vocabulary.computable:
        yield f"of kind {vocabulary.kind}, whose tokenizer is not here", ""
    elif vocabulary.hidden_states is not None:
        yield "of hidden states, which a network makes of whole clips", ""


def _attention_mistakes(report: ReportParams, models: Mapping[str, ModelParams], path: Path) -> list[str]:
    """Return a message for each model of `report.attention` that cannot be explained over frames."""
    kinds = ", ".join(kind for kind in ENCODERS if ENCODERS[kind].has_attention or ENCODERS[kind].has_feature_maps)
    return [
        f"{path}: report.attention: expected networks with one of the encoders {kinds}, found {name} of kind "
        f"{models[name].kind}{_of_windows(models[name])}; remove it, or set report.attention to []"
        for name in report.attention
        if name in models and models[name].reads == "frames" and models[name].explanation is None
    ]


def _attribution_mistakes(atlas: AtlasParams, models: Mapping[str, ModelParams], path: Path) -> list[str]:
    """Return a message for a model of `atlas.attribution` whose logits cannot be attributed to tokens."""
    return [
        f"{path}: atlas.attribution: expected a network with input.kind tokens, found {name} of kind {models[name].kind}; "
        "name such an entry, or set atlas.attribution to []"
        for name in atlas.attribution
        if name in models and models[name].reads == "tokens" and not models[name].attributes_tokens
    ]


def _front_end_mistakes(
    experiment: ExperimentParams,
    front_end: FrontEndSection,
    models: Mapping[str, ModelParams],
    vocabularies: Mapping[str, VocabularySection],
    path: Path,
) -> list[str]:
    """Return a message for each model and vocabulary of the grid that cannot read the front end's frames."""
    where, mistakes = f"{path}: spectrogram.front_end.kind {front_end.kind}", []
    for name in experiment.entries:
        try:
            if name in models:
                models[name].require_front_end(front_end)
        except ValueError as error:
            mistakes.append(f"{where}: {name} cannot read its frames: {error}; or take {name} out of experiment")
    mistakes += [
        f"{where}: vocabularies.{name} of kind bands divides log-mel frames of one channel; use another kind, or take "
        f"{name} out of experiment.vocabularies"
        for name in experiment.vocabularies
        if name in vocabularies
        and vocabularies[name].kind == "bands"
        and vocabularies[name].decodable
        and not front_end.is_log_mel
    ]
    if front_end.has_samples and experiment.vocabularies:
        mistakes.append(
            f"{where}: expected no vocabularies over frames of samples, found experiment.vocabularies "
            f"{', '.join(experiment.vocabularies)}; empty it and experiment.token_models, or use the front end kaldi or "
            "waveform_encoder"
        )
    return mistakes


def _of_windows(model: ModelParams) -> str:
    """Return what messages add for a network that attends within windows, where there is no map of a clip."""
    return "" if model.windows is None else " with a window, within which it attends"


def _reading_mistakes(
    experiment: ExperimentParams,
    models: Mapping[str, ModelParams],
    vocabularies: Mapping[str, VocabularySection],
    path: Path,
) -> list[str]:
    """Return a message for each vocabulary whose tokens a model of the grid cannot read."""
    mistakes = []
    for model, tokens in product(experiment.token_entries, experiment.vocabularies):
        if model in models and tokens in vocabularies:
            try:
                models[model].require_vocabulary(vocabularies[tokens])
            except ValueError as error:
                mistakes.append(
                    f"{path}: experiment.vocabularies: {model} cannot read {tokens}: {error}; remove one of the two"
                )
    return mistakes
