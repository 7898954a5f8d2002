"""A trained model as a folder: `weights.safetensors`, and `model.json` with everything that prediction needs.

With `train.keep_epochs` there is a file `epochs/<epoch>.safetensors` for each of them besides, and these predict together.

No pickle is read or written, and nothing of params.yaml is needed to predict: the folder holds the model's params, the
class list, the input's facts and normalisation.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from pipeline.artifacts.files import file_digest, replacing
from pipeline.artifacts.tables import check_facts, facts_digest
from pipeline.errors import ArtifactError

WEIGHTS, CARD = "weights.safetensors", "model.json"
EPOCHS = "epochs"  # the folder of kept epochs, and the fact on the card, which a model without has not

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


def write_model(
    path: Path,
    weights: Mapping[str, np.ndarray],
    facts: Mapping[str, Any],
    epochs: Mapping[int, Mapping[str, np.ndarray]] | None = None,
) -> None:
    """Write a model folder in one step; `facts` without the weights' digest. `epochs` are the weights that predict."""
    with replacing(path) as partial:
        partial.mkdir(parents=True)
        card = dict(facts) | {"weights": _write_weights(partial / WEIGHTS, weights)}
        if epochs:
            (partial / EPOCHS).mkdir()
            card[EPOCHS] = {
                str(epoch): _write_weights(_epoch_path(partial, epoch), member) for epoch, member in epochs.items()
            }
        _check_card(path, card)
        card |= {_DIGEST: facts_digest(card)}
        (partial / CARD).write_text(json.dumps(card, indent=1, sort_keys=True) + "\n")


def open_model(path: Path) -> TrainedModel:
    """Open a model folder and check its facts and that the weights are those written with them."""
    facts = read_card(path)
    return TrainedModel(path, _read_weights(path, path / WEIGHTS, facts["weights"]), facts)


def open_members(model: TrainedModel) -> Iterator[TrainedModel]:
    """Yield the models whose mean predicts: one for each kept epoch, or, where none is kept, the model itself."""
    if EPOCHS not in model.facts:
        yield model
        return
    for epoch, digest in sorted(model.facts[EPOCHS].items(), key=lambda entry: int(entry[0])):
        yield replace(model, weights=_read_weights(model.path, _epoch_path(model.path, int(epoch)), digest))


def count_predicting(weights: Mapping[str, np.ndarray], epochs: Mapping[int, Mapping[str, np.ndarray]]) -> int:
    """Return how many parameters predict: those of the weights, or, where epochs were kept, of all these together."""
    members = list(epochs.values()) or [weights]
    return sum(array.size for member in members for array in member.values() if array.dtype.kind == "f")


def predicting_digest(facts: Mapping[str, Any]) -> str:
    """Return what names the weights that predict: their file's digest, or that of the digests of all kept epochs."""
    return facts_digest(facts[EPOCHS]) if EPOCHS in facts else str(facts["weights"])


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
    _check_card(path, facts)
    return facts


def _epoch_path(path: Path, epoch: int) -> Path:
    return path / EPOCHS / f"{epoch}.safetensors"


def _write_weights(path: Path, weights: Mapping[str, np.ndarray]) -> str:
    """Write a file of weights and return its digest."""
    save_file({name: np.ascontiguousarray(values) for name, values in weights.items()}, path)
    return file_digest(path)


def _read_weights(model_path: Path, path: Path, expected: str) -> dict[str, np.ndarray]:
    field = path.relative_to(model_path).as_posix()
    if not path.exists():
        raise _error(model_path, field, expected="a file", found="none")
    digest = file_digest(path)
    if digest != expected:
        raise _error(model_path, field, expected=f"digest {expected} as written", found=digest)
    try:
        weights: dict[str, np.ndarray] = load_file(path)
    except SafetensorError as error:
        raise _error(model_path, field, expected="safetensors", found=str(error)) from None
    return weights


def _check_card(path: Path, card: Mapping[str, Any]) -> None:
    expected = dict(_FACTS) | ({EPOCHS: dict} if EPOCHS in card else {})  # epoch -> digest of its file
    check_facts(expected, card, lambda key, **found: _error(path, key, **found))


def _error(path: Path, field: str, *, expected: object, found: object) -> ArtifactError:
    item = "-".join(path.parts[-3:])  # model, fold, seed
    return ArtifactError(path, field, expected=expected, found=found, stage=f"train_*@{item}")
