"""Files of the stage `code`: digests of the code and settings that the result of each stage depends on.

    code/<stage>, or code/<stage>/<entry> for each entry of `models` or `vocabularies` that the stage runs for

A file holds, as JSON, a digest of the definitions reached from the stage's program, the releases of the numeric packages
among them, and for stages that train the settings of the section `train` that the entry's kind reads, so that a setting of
augmentation does not retrain a bag of tokens. Where copies of clips are trained on, `spectrogram.copies` and the code that
changes waveforms count too; where background noise is added, the digest of its sounds; where a model of tokens trains on
those of augmented frames, the settings of frames and the code that assigns them; and where a vocabulary quantises hidden
states, the code of the network that makes them.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

from pipeline.artifacts.files import file_digest, replacing
from pipeline.artifacts.settings import leaves
from pipeline.evaluation.tokenizing import HIDDEN_STATES
from pipeline.execution.code import NUMERIC, Sources, kinds_in, reach, releases, snapshot
from pipeline.grid import ExperimentParams
from pipeline.models.registry import BASELINES
from pipeline.paths import input_path, shared_path
from pipeline.training.augmentation.noise_folder import find_sounds
from pipeline.training.augmentation.settings import OF_FRAMES, RETOKENIZE
from pipeline.training.trainers import way_of

_KEPT_OUTCOMES = 20  # latest earlier runs


class StageCode(NamedTuple):
    """Registry entries and settings that the code of a stage may reach."""

    sections: tuple[str, ...] = ()  # of params.yaml, whose kinds choose registry entries; {entry} is the file's entry
    lists: tuple[str, ...] = ()  # of params.yaml, with dots: one file per entry of these lists; empty = one file
    trains: bool = False  # depends on the settings of `train` that the entry's kind reads


class CodeFile(TypedDict):
    """Content of a file of the stage `code`, as JSON."""

    code: str  # digest of the definitions
    packages: dict[str, str]  # distribution -> release
    settings: NotRequired[dict[str, object]]  # of `train`, by their keys with dots; of stages that train
    files: NotRequired[dict[str, str]]  # key of params.yaml that names a file or folder -> digest, where there are such


Sections = Mapping[str, Mapping[str, object]]  # entries of `models` or `vocabularies`

_TOKEN_LISTS = ("experiment.token_models", "experiment.pretrained_models")
_MODEL_LISTS = ("experiment.frame_models", *_TOKEN_LISTS)
_VOCABULARIES = ("experiment.vocabularies",)
_SUPERVISED = ("experiment.supervised_vocabularies",)
_PRETRAINED = ("experiment.pretrained_models",)
_OF_TOKENIZERS = ("vocabulary", "tokenize")  # stages that compute hidden states, or read the files of external tokens

STAGES = {
    "corpus": StageCode(("corpus",)),
    "split": StageCode(),
    "spectrogram": StageCode(("spectrogram",)),
    "duplicates": StageCode(),
    "development": StageCode(),
    "supervision": StageCode((), _SUPERVISED),
    "network": StageCode(),
    "vocabulary": StageCode(("vocabularies.{entry}",), _VOCABULARIES),
    "tokenize": StageCode(("vocabularies.{entry}",), _VOCABULARIES),
    "train": StageCode(("models.{entry}",), _MODEL_LISTS, trains=True),
    "evaluate": StageCode(("models.{entry}",), _MODEL_LISTS),
    "pretrain": StageCode(("models.{entry}",), _PRETRAINED, trains=True),
    "perplexity": StageCode(("models.{entry}",), _PRETRAINED),
    "enhance": StageCode(("labels",)),
    "attention": StageCode(("models.{entry}",), ("report.attention",)),
    "ngram_perplexity": StageCode(("vocabularies.{entry}",), _VOCABULARIES),
    "attribution": StageCode(("models.{entry}",), ("atlas.attribution",)),
    "atlas": StageCode(("vocabularies.{entry}", "spectrogram"), _VOCABULARIES),
    "thresholds": StageCode(),
    "report": StageCode(("vocabularies", "spectrogram")),
}

# Settings of `train` that only models of one input read, and settings that only the stage `train` reads, not `pretrain`.
_OF_FRAMES = tuple(f"augmentation.{name}" for name in OF_FRAMES)
_RETOKENIZE = f"train.augmentation.{RETOKENIZE}"
_OF_TOKENS = ("augmentation.token_noise", f"augmentation.{RETOKENIZE}")
_BACKGROUND = "train.augmentation.background.folder"
COPIES = "spectrogram.copies"  # a setting that models trained on copies read, besides those of `train`
# What makes copies of the frames whose version the development set records.
_COPYING = (("pipeline.spectrogram.copies", "CopyFrontEnd"),)
_OF_PRETRAINING = (
    "accumulate",
    "activation_checkpointing",
    "average",
    "compile",
    "gradient_clip",
    "num_threads",
    "optimiser",
    "precision",
)


def read_settings(document: Mapping[str, Any], stage: str, entry: str) -> dict[str, object]:
    """Return the settings of `train` that a stage reads for an entry of `models`: key with dots -> value."""
    wanted = dict(leaves({"train": document["train"]}))
    if stage == "pretrain":
        return {key: value for key, value in wanted.items() if key.split(".")[1] in _OF_PRETRAINING}
    if document["models"][entry]["kind"] in BASELINES:
        return {"train.num_threads": wanted["train.num_threads"]}
    reads_frames = entry in document["experiment"]["frame_models"]
    of_other_input = _OF_TOKENS if reads_frames else () if wanted.get(_RETOKENIZE) else _OF_FRAMES
    unread = [f"train.{name}" for name in of_other_input]
    read = {key: value for key, value in wanted.items() if not any(f"{key}.".startswith(f"{name}.") for name in unread)}
    if read.get("train.augmentation.copies"):
        read[COPIES] = document["spectrogram"]["copies"]
    if read.get(_BACKGROUND):  # what the folder holds counts, which `stage_files` digests, and not where it lies
        del read[_BACKGROUND]
    return read


def retokenizes(settings: Mapping[str, object]) -> bool:
    """Return whether a model with these settings, see `read_settings`, trains on tokens of augmented frames."""
    return bool(settings.get(_RETOKENIZE))


def _files(document: Mapping[str, Any]) -> dict[str, str]:
    """Return key -> digest of the files and folders that settings name; empty for a file that is missing.

    Raises SonolexError as `find_sounds`.
    """
    found: dict[str, str] = {}
    try:
        found |= _token_files(document["experiment"]["vocabularies"], document["vocabularies"])
        families, background = (
            document["train"]["loss"].get("families"),
            document["train"]["augmentation"]["background"],
        )
        groups = families["groups"] if families else None
        folder = background["folder"] if background["probability"] else None
    except (KeyError, TypeError, AttributeError):  # a mistake that the check of the params reports
        return found
    if isinstance(groups, str):
        path = input_path(groups)
        found["train.loss.families.groups"] = file_digest(path) if path.is_file() else ""
    if isinstance(folder, str):
        found[_BACKGROUND] = find_sounds(shared_path(folder)).digest
    return found


def _reads_section(settings: Mapping[str, object], key: str) -> bool:
    """Return whether settings beside this one are read."""
    return any(read.rpartition(".")[0] == key.rpartition(".")[0] for read in settings)


def _token_files(names: Sequence[str], vocabularies: Mapping[str, Mapping[str, str | None]]) -> dict[str, str]:
    """Return key -> digest of the files that external tokens of the experiment are read from; "" for one that is missing."""
    found: dict[str, str] = {}
    for name in names:
        section = vocabularies[name]
        for key in ("table", "vectors") if section["kind"] == "external" else ():
            if (text := section[key]) is not None:
                path = input_path(text)
                found[f"vocabularies.{name}.{key}"] = file_digest(path) if path.is_file() else ""
    return found


def stage_files(document: Mapping[str, Any], sources: Sources) -> dict[str, str]:
    """Return path below the folder `code` -> content, for every stage of a validated params document."""
    files: dict[str, str] = {}
    for stage, about in STAGES.items():
        for entry in _entries(document, about):
            sections = [section.format(entry=entry) for section in about.sections]
            settings = read_settings(document, stage, entry) if about.trains else {}
            roots = [(f"stages.{stage}", "main"), *(_COPYING if COPIES in settings else ())]
            kinds = chosen_kinds(document, sections) | ({RETOKENIZE} if retokenizes(settings) else set())
            if stage in _OF_TOKENIZERS:
                kinds |= _network_kinds(entry, document["experiment"], document["vocabularies"], document["models"])
            found = reach(sources, roots, kinds)
            content: CodeFile = {"code": found.digest, "packages": dict(sorted(found.packages.items()))}
            own = f"vocabularies.{entry}."
            if stage in _OF_TOKENIZERS and (read := {k: v for k, v in _files(document).items() if k.startswith(own)}):
                content["files"] = read
            if about.trains:
                content["settings"] = settings
                if files_read := {key: read for key, read in _files(document).items() if _reads_section(settings, key)}:
                    content["files"] = files_read
            files[f"{stage}/{entry}" if about.lists else stage] = json.dumps(content, indent=1) + "\n"
    return files


def write_stage_code(document: Mapping[str, Any], check: Callable[[], object], folder: Path, kept: Path) -> bool:
    """Write all files of `document` into `folder`; `kept` caches the outcomes of earlier runs.

    Calls `check`, which raises on a mistake in the params, before computing. Returns whether anything was computed.
    """
    texts = snapshot()
    key = _digest(texts, document)
    outcome = kept / f"{key}.json"
    files = _read(outcome)
    known = files is not None
    if files is None:
        check()
        files = stage_files(document, Sources(Path(), texts))
        with replacing(outcome) as partial:
            partial.write_text(json.dumps(files))
        _forget(kept)
    for name, content in files.items():
        with replacing(folder / name) as partial:
            partial.write_text(content)
    return not known


def find_earlier(kept: Path, name: str, digest: str | None) -> CodeFile | None:
    """Return the content of a file with this MD5 digest (DVC's) from earlier outcomes, or None."""
    for outcome in kept.glob("*.json"):
        content = (_read(outcome) or {}).get(name, "")
        if content and hashlib.md5(content.encode(), usedforsecurity=False).hexdigest() == digest:
            found: CodeFile = json.loads(content)
            return found
    return None


def _entries(document: Mapping[str, Any], about: StageCode) -> list[str]:
    if not about.lists:
        return [""]
    sections = [name.split(".") for name in about.lists]
    return list(dict.fromkeys(entry for section, key in sections for entry in document[section][key]))


def chosen_kinds(document: Mapping[str, Any], sections: list[str]) -> set[str]:
    """Return all kinds that occur in these sections, and the trainers of models of these kinds.

    Of `vocabularies` only the entries in the experiment count.
    """
    kinds: set[str] = set()
    for section in sections:
        value: Any = document
        for key in section.split("."):
            value = value[key]
        if section == "vocabularies":
            value = {name: value[name] for name in document["experiment"]["vocabularies"]}
        kinds |= kinds_in(value)
    return kinds | {way_of(kind) for kind in kinds if kind in BASELINES}


def _network_kinds(name: str, experiment: object, vocabularies: Sections, models: Sections) -> set[str]:
    """Return the kinds of the network whose hidden states an entry of `vocabularies` quantises; none for one of frames."""
    features = vocabularies[name].get("features")
    wanted = features.get(HIDDEN_STATES) if isinstance(features, Mapping) else None
    if not isinstance(wanted, Mapping):
        return set()
    model = ExperimentParams.model_validate(experiment).model(wanted["model"])
    kinds = {HIDDEN_STATES} | kinds_in(models[model.entry])
    if model.vocabulary:
        kinds |= kinds_in(vocabularies[model.vocabulary])
        kinds |= _network_kinds(model.vocabulary, experiment, vocabularies, models)
    return kinds


def _digest(texts: Mapping[str, str], document: Mapping[str, object]) -> str:
    """Return the key of an outcome: a digest of sources, params, and releases of packages."""
    digest = hashlib.sha256()
    for path, text in texts.items():
        digest.update(f"{path}\x1f{text}\x1e".encode())
    digest.update(
        json.dumps([document, _files(document), {name: releases(name) for name in NUMERIC}], default=str).encode()
    )
    return digest.hexdigest()[:32]


def _read(path: Path) -> dict[str, str] | None:
    try:
        files: dict[str, str] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return files


def _forget(kept: Path) -> None:
    outcomes = sorted(kept.glob("*.json"), key=lambda path: path.stat().st_mtime)
    for path in outcomes[:-_KEPT_OUTCOMES]:
        path.unlink(missing_ok=True)
