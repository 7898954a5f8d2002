"""Bundle: a folder with all that prediction needs, to hand over; nothing of the project is read.

    <path>/bundle.json              classes, label kind, thresholds, members, releases, digests; with a digest of itself
    <path>/README.md                the model card
    <path>/members/<n>/             a model's folder (`pipeline/artifacts/model.py`)
    <path>/vocabularies/<n>.zarr    the vocabularies of the members that read tokens (`pipeline/artifacts/vocabulary.py`)

The members' front end, classes and label kind are the same. They predict the mean of their probabilities.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np

from pipeline.artifacts.clips import LabelKind
from pipeline.artifacts.files import file_digest, replacing
from pipeline.artifacts.model import TrainedModel, open_model
from pipeline.artifacts.tables import check_metadata, metadata_digest, metadata_types
from pipeline.artifacts.vocabulary import Vocabulary, open_vocabulary
from pipeline.errors import ArtifactError, SonolexError
from pipeline.inference.classifier import Classifier, Member

FORMAT = 1  # raised when an older release could not read a bundle
CARD = "bundle.json"
README = "README.md"

_DIGEST = "digest"  # entry of the card: digest of all others


class MemberRecord(TypedDict):
    """A member of a bundle."""

    folder: str  # below the bundle
    vocabulary: str  # path below the bundle; empty for a model that reads frames
    model: str  # its name in the experiment
    folds: list[str]  # of which it has seen the training clips
    seed: int


class BundleCard(TypedDict):
    """Content of `bundle.json`, without its own digest."""

    format: int
    name: str  # of the model or ensemble in its experiment
    classes: list[str]
    label_kind: LabelKind
    thresholds: list[float]  # of each class's probability, with label kind "many"
    members: list[MemberRecord]
    licence: str  # of the weights; empty where nobody has stated it
    releases: dict[str, str]  # Sonolex's and those of the packages that made it
    params: dict[str, Any]  # sections of params.yaml that the members follow from
    metrics: dict[str, float]  # of test clips; empty without any
    files: dict[str, str]  # path below the bundle -> digest of every file but the card


@dataclass(frozen=True)
class Bundle:
    """An opened bundle."""

    path: Path
    card: BundleCard
    classifier: Classifier


def write_bundle(path: Path, members: Sequence[Member], card: Mapping[str, Any], readme: str) -> None:
    """Write a bundle in one step; `card` without format, members' places and digests.

    Each record of `card["members"]` has the keys model, folds and seed.
    """
    vocabularies = {member.source: member.vocabulary for member in members if member.vocabulary}
    places = {digest: f"vocabularies/{number}.zarr" for number, digest in enumerate(vocabularies)}
    with replacing(path) as partial:
        partial.mkdir(parents=True)
        records = []
        for number, (member, about) in enumerate(zip(members, card["members"], strict=True)):
            folder = f"members/{number}"
            shutil.copytree(member.model.path, partial / folder)
            records.append({**about, "folder": folder, "vocabulary": places.get(member.source, "")})
        for digest, vocabulary in vocabularies.items():
            shutil.copytree(vocabulary.path, partial / places[digest])
        (partial / README).write_text(readme)
        whole = {**card, "format": FORMAT, "members": records, "files": _digests(partial)}
        whole |= {_DIGEST: metadata_digest(whole)}
        (partial / CARD).write_text(json.dumps(whole, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


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
    return Bundle(path, card, Classifier(members, np.array(card["thresholds"])))


def require_members(members: Sequence[Member]) -> None:
    """Raise SonolexError unless the members share front end, classes and label kind, and have their vocabularies."""
    first = members[0].model
    for member in members:
        for field in ("front_end", "classes", "label_kind"):
            if member.model.metadata[field] != first.metadata[field]:
                raise SonolexError(
                    f"{member.model.path}: {field}: expected that of {first.path}, found another; models of one bundle "
                    "come from one experiment"
                )
        _require_vocabulary(member.model, member.vocabulary)


def _require_vocabulary(model: TrainedModel, vocabulary: Vocabulary | None) -> None:
    found = vocabulary.digest() if vocabulary else ""
    if found != model.metadata["source"]:
        where = vocabulary.path if vocabulary else model.path
        expected = model.metadata["source"] or "none, for a model that reads frames"
        raise SonolexError(
            f"{where}: expected the vocabulary of digest {expected}, found {found or 'none'}; make the bundle again with "
            "`sonolex bundle`, after `dvc repro`"
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
        card = json.loads((path / CARD).read_bytes())
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
    check_metadata(
        metadata_types(BundleCard), card, lambda key, **found: ArtifactError(path / CARD, key, stage="bundle", **found)
    )
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
