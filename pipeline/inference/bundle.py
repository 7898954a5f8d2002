"""Bundle: a folder with all that prediction needs, to hand over; nothing of the project is read.

    <path>/bundle.json              classes, label kind, thresholds, members, releases, digests; with a digest of itself
    <path>/README.md                the model card
    <path>/members/<n>/             a model's folder (`pipeline/artifacts/model.py`)
    <path>/vocabularies/<n>.zarr    the vocabularies of the members that read tokens (`pipeline/artifacts/vocabulary.py`)

The members' front end, classes and label kind are the same. They predict the mean of their probabilities.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict, cast

import numpy as np

from pipeline.artifacts.clips import LabelKind, link_of
from pipeline.artifacts.files import file_digest, parse_json, replacing
from pipeline.artifacts.model import MEMBERS, MODEL, TrainedModel, open_model, portable_metadata, write_model
from pipeline.artifacts.settings import without_folders
from pipeline.artifacts.tables import check_metadata, metadata_digest, metadata_types
from pipeline.artifacts.vocabulary import Vocabulary, open_vocabulary
from pipeline.artifacts.weights import EPOCHS
from pipeline.errors import ArtifactError, SonolexError
from pipeline.inference.classifier import Classifier, Member

FORMAT = 1  # raised when an older release could not read a bundle
CARD = "bundle.json"
README = "README.md"

Origin = Literal["trained", "retrained", "published"]  # on folds' training clips; on all clips; by others

_DIGEST = "digest"  # entry of the card: digest of all others


class MemberRecord(TypedDict):
    """A member of a bundle."""

    folder: str  # below the bundle
    vocabulary: str  # path below the bundle; empty for a model that reads frames
    model: str  # its name in the experiment
    folds: list[str]  # of which it has seen the training clips; none for published weights
    seed: int


class TrainingClips(TypedDict):
    """Clips that the members were trained on, all folds together; of published weights nothing is known."""

    corpus: str  # name
    licence: str  # of the corpus
    clips: int
    seconds: float  # in total
    shortest: float  # seconds
    longest: float  # seconds


class FoldMetrics(TypedDict):
    """Metrics of a fold's test clips, by the members that have not seen them; without undefined ones."""

    fold: str
    num_clips: int
    num_present_classes: int  # that mAP is the mean of
    values: dict[str, float]  # by metric
    intervals: dict[str, list[float]]  # [low, high] of 95 %, of the metrics that have one


class BundleContent(TypedDict):
    """What a bundle says of its members."""

    name: str  # of the model or ensemble in its experiment, or of a published checkpoint
    origin: Origin
    classes: list[str]
    label_kind: LabelKind
    thresholds: list[float]  # of each class's probability, with label kind "many"
    licence: str  # of the weights; empty where nobody has stated it
    releases: dict[str, str]  # Sonolex's and those of the packages that made the bundle
    trained_with: dict[str, str]  # releases of the packages that trained it, where they are recorded
    made_from: dict[str, str]  # `commit` of the project and digest of its `dvc.lock`, where there are such
    params: dict[str, object]  # sections of params.yaml that the members follow from
    trained_on: TrainingClips
    metrics: list[FoldMetrics]  # of test clips; none without any


class BundleCard(BundleContent):
    """Content of `bundle.json`, without its own digest."""

    format: int
    members: list[MemberRecord]
    files: dict[str, str]  # path below the bundle -> digest of every file but the card


@dataclass(frozen=True)
class Bundle:
    """An opened bundle."""

    path: Path
    card: BundleCard
    classifier: Classifier


def write_bundle(path: Path, members: Sequence[Member], content: BundleContent, readme: str) -> None:
    """Write a bundle in one step.

    The same members, content and text give the same bytes; of absolute paths in params only the name is kept.
    """
    vocabularies = {member.source: member.vocabulary for member in members if member.vocabulary}
    places = {digest: f"vocabularies/{number}.zarr" for number, digest in enumerate(vocabularies)}
    with replacing(path) as partial:
        partial.mkdir(parents=True)
        records = []
        for number, member in enumerate(members):
            folder = f"{MEMBERS}/{number}"
            _write_member(member.model, partial / folder)
            records.append(_record(member, folder, places.get(member.source, "")))
        for digest, vocabulary in vocabularies.items():
            shutil.copytree(vocabulary.path, partial / places[digest])
        (partial / README).write_text(readme, encoding="utf-8")
        _write_card(partial, content, records)


def _record(member: Member, folder: str, vocabulary: str) -> MemberRecord:
    about = member.model.metadata
    folds = [about["fold"]] if about["fold"] else []
    return {"folder": folder, "vocabulary": vocabulary, "model": about["model"], "folds": folds, "seed": about["seed"]}


def _write_card(folder: Path, content: BundleContent, members: list[MemberRecord]) -> None:
    params = cast(dict[str, object], without_folders(content["params"]))
    card: BundleCard = {
        **content,
        "params": params,
        "format": FORMAT,
        "members": members,
        "files": _digests(folder),
    }
    whole = {**card, _DIGEST: metadata_digest(card)}
    text = json.dumps(whole, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    (folder / CARD).write_text(text, encoding="utf-8")


def _write_member(model: TrainedModel, folder: Path) -> None:
    """Write a model, also one without a folder of its own, with its kept epochs."""
    kept = {
        int(epoch): MODEL.open_epoch(model.path, model.metadata, int(epoch)) for epoch in model.metadata.get(EPOCHS, {})
    }
    write_model(folder, model.weights, portable_metadata(model), kept)


def open_bundle(path: Path) -> Bundle:
    """Open a bundle; check its version, and every file against its digest.

    Raises SonolexError that names the file, what was expected and found, and what to do.
    """
    card = _read_card(path)
    _require_files(path, card)
    try:
        vocabularies = {
            place: open_vocabulary(path / place)
            for place in {record["vocabulary"] for record in card["members"]} - {""}
        }
        members = tuple(
            Member(open_model(path / record["folder"]), vocabularies.get(record["vocabulary"]))
            for record in card["members"]
        )
    except ArtifactError as error:  # its advice is for the project that made it
        raise _damaged(error.path, error.field, expected=error.expected, found=error.found) from None
    require_members(members)
    _require_thresholds(path, card, members[0].model.metadata["classes"])
    return Bundle(path, card, Classifier(members, np.array(card["thresholds"])))


def _require_thresholds(path: Path, card: BundleCard, classes: Sequence[str]) -> None:
    """Raise SonolexError unless the card names the members' classes, and has a threshold from 0 to 1 for each."""
    if card["classes"] != list(classes):
        raise _damaged(path / CARD, "classes", expected=f"the {len(classes)} classes of its models", found="others")
    values = np.array(card["thresholds"])
    if len(values) != len(classes) or not ((values >= 0) & (values <= 1)).all():
        expected, found = f"a number from 0 to 1 for each of {len(classes)} classes", f"{len(values)}: {values[:3]}"
        raise _damaged(path / CARD, "thresholds", expected=expected, found=found)


def require_members(members: Sequence[Member]) -> None:
    """Raise SonolexError unless the members share front end, classes and label kind, and have their vocabularies."""
    first = members[0].model
    for member in members:
        for field in ("front_end", "classes", "label_kind"):
            if member.model.metadata[field] != first.metadata[field]:
                raise SonolexError(
                    f"{member.model.path}: {field}: expected that of {first.path}, found another; only models with the "
                    "same front end, classes and label kind predict together: take others, or one at a time"
                )
        if link_of(member.model.metadata) != link_of(first.metadata):
            raise SonolexError(
                f"{member.model.path}: link: expected {link_of(first.metadata)}, that of {first.path}, found "
                f"{link_of(member.model.metadata)}; bundle networks of one train.loss, and classical models with networks "
                "of train.loss {kind: auto}"
            )
        _require_vocabulary(member.model, member.vocabulary)


def _require_vocabulary(model: TrainedModel, vocabulary: Vocabulary | None) -> None:
    if vocabulary and vocabulary.external:
        raise external_tokens_error(model.path)
    found = vocabulary.digest() if vocabulary else ""
    if found != model.metadata["source"]:
        where = vocabulary.path if vocabulary else model.path
        expected = model.metadata["source"] or "none, for a model that reads frames"
        raise SonolexError(
            f"{where}: expected the vocabulary of digest {expected}, found {found or 'none'}; make the bundle again with "
            "`sonolex bundle`, after `dvc repro`"
        )


def external_tokens_error(where: Path | str) -> SonolexError:
    """Return the error for a model on external tokens, which are there for the clips of a table alone."""
    return SonolexError(
        f"{where}: expected tokens that are computed from sound, found a vocabulary of kind external, whose tokens another "
        "program made: without it the model cannot predict other sounds; take a model on another vocabulary or on frames"
    )


def is_bundle(path: Path) -> bool:
    """Return whether a folder holds a bundle, whole or not."""
    return (path / CARD).is_file()


def _read_card(path: Path) -> BundleCard:
    if not is_bundle(path):
        found = "a folder without it" if path.is_dir() else "a file" if path.exists() else "nothing"
        raise SonolexError(
            f"{path}: expected a bundle, a folder with {CARD}, found {found}; `sonolex bundle` writes one"
        )
    try:
        card = parse_json((path / CARD).read_bytes())
    except ValueError as error:
        raise _damaged(path / CARD, "text", expected="JSON", found=error) from None
    if not isinstance(card, dict):
        raise _damaged(path / CARD, "text", expected="a JSON object", found=type(card).__name__)
    number = card.get("format")
    if isinstance(number, int) and number > FORMAT:
        raise SonolexError(
            f"{path / CARD}: format: expected at most {FORMAT}, found {number}: a newer Sonolex wrote it; update Sonolex"
        )
    written = card.pop(_DIGEST, None)
    if written != metadata_digest(card):
        raise _damaged(path / CARD, _DIGEST, expected=f"{written} as written", found=metadata_digest(card))
    try:
        check_metadata(
            metadata_types(BundleCard),
            card,
            lambda key, **found: ArtifactError(path / CARD, key, stage="bundle", **found),
        )
    except ArtifactError as error:  # its advice is for artifacts of a project
        raise _damaged(path / CARD, error.field, expected=error.expected, found=error.found) from None
    return cast(BundleCard, card)


def _require_files(path: Path, card: BundleCard) -> None:
    """Raise SonolexError for a missing or altered file. Weights are not read here: opening a model checks their digest."""
    for name, expected in card["files"].items():
        file = path / name
        if not file.is_file():
            raise _damaged(file, "file", expected="a file", found="none")
        if file.suffix != ".safetensors" and (found := file_digest(file)) != expected:
            raise _damaged(file, "digest", expected=f"{expected} as written", found=found)


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file_digest(file) for file in files}


def _damaged(path: Path, field: str, *, expected: object, found: object) -> SonolexError:
    found = " ".join(str(found).split())
    return SonolexError(
        f"{path}: {field}: expected {expected}, found {found}; the bundle is incomplete or was altered: copy it again, or "
        "make it again with `sonolex bundle`"
    )
