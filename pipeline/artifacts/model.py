"""A trained model as a folder: `weights.safetensors`, and `model.json` with everything that prediction needs.

No pickle is read or written, and nothing of params.yaml is needed to predict: the folder holds the model's params, the
class list, the input's facts and normalisation.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from pipeline.artifacts.files import file_digest, replacing
from pipeline.artifacts.tables import check_facts, facts_digest
from pipeline.errors import ArtifactError

WEIGHTS, CARD = "weights.safetensors", "model.json"

_DIGEST = "digest"  # of all facts; stands among them on the card

_FACTS: Mapping[str, type] = {
    "model": str,
    "params": dict,  # the model's own section, as validated
    "classes": list,
    "label_kind": str,
    "reads": str,  # frames or tokens
    "input": dict,  # what it was built for: n_mels and normalisation, or vocabulary size; see pipeline/models
    "source": str,  # digest of the vocabulary (tokens), or empty
    "front_end": dict,  # facts of the front end behind the input
    "fold": str,
    "seed": int,
    "num_parameters": int,
    "clips_seen": int,
    "seconds": float,  # of training
    "weights": str,  # digest of the weights file
}


@dataclass(frozen=True)
class TrainedModel:
    """An opened model folder: arrays by name, and the facts beside them."""

    path: Path
    weights: dict[str, np.ndarray]
    facts: dict[str, Any]


def write_model(path: Path, weights: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
    """Write a model folder in one step; `facts` without the weights' digest."""
    with replacing(path) as partial:
        partial.mkdir(parents=True)
        save_file({name: np.ascontiguousarray(values) for name, values in weights.items()}, partial / WEIGHTS)
        card = dict(facts) | {"weights": file_digest(partial / WEIGHTS)}
        check_facts(_FACTS, card, lambda key, **found: _error(path, key, **found))
        card |= {_DIGEST: facts_digest(card)}
        (partial / CARD).write_text(json.dumps(card, indent=1, sort_keys=True) + "\n")


def open_model(path: Path) -> TrainedModel:
    """Open a model folder and check its facts and that the weights are those written with them."""
    if not (path / WEIGHTS).exists():
        raise _error(path, WEIGHTS, expected="a file", found="none")
    facts = read_card(path)
    digest = file_digest(path / WEIGHTS)
    if digest != facts["weights"]:
        raise _error(path, WEIGHTS, expected=f"digest {facts['weights']} as written", found=digest)
    try:
        weights = load_file(path / WEIGHTS)
    except SafetensorError as error:
        raise _error(path, WEIGHTS, expected="safetensors", found=str(error)) from None
    return TrainedModel(path, weights, facts)


def read_card(path: Path) -> dict[str, Any]:
    """Read the facts of a model folder without its weights, and check that they are as written."""
    if not (path / CARD).exists():
        raise _error(path, CARD, expected="a file", found="none")
    try:
        facts: dict[str, Any] = json.loads((path / CARD).read_text())
    except ValueError as error:  # not JSON, or not even UTF-8
        raise _error(path, CARD, expected="JSON", found=str(error)) from None
    written = facts.pop(_DIGEST, None)
    found = facts_digest(facts)
    if written != found:
        raise _error(path, CARD, expected=f"facts of digest {written} as written", found=found)
    check_facts(_FACTS, facts, lambda key, **found: _error(path, key, **found))
    return facts


def _error(path: Path, field: str, *, expected: object, found: object) -> ArtifactError:
    item = "-".join(path.parts[-3:])  # model, fold, seed
    return ArtifactError(path, field, expected=expected, found=found, stage=f"train_*@{item}")
