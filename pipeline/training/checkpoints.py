"""Checkpoints: a killed run resumes after its last saved epoch, with the result of an uninterrupted run.

A checkpoint is one safetensors file outside DVC's outputs (DVC deletes those before a stage starts), under a key of
everything that determines the result: params, inputs, and the code that trains. A checkpoint of other settings is therefore
never used. Random state is not saved: every epoch seeds its own streams.

A checkpoint holds a digest of itself. A damaged one is dropped with a warning, and training resumes from the one before,
which is kept beside it, or starts over. A checkpoint that cannot be read (no permission, failing disk) stops the run.

Of several processes one writes and all read; between epochs all hold the same state, so a run may resume with another number
of processes. Its result then differs from that of either number, since each draws its own random numbers.
"""

import contextlib
import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, NotRequired, TypedDict

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.artifacts.files import replacing
from pipeline.training.gradient_flow import LayerGradient
from pipeline.training.step import Learner, M

log = logging.getLogger(__name__)

CHECKPOINTS = Path(".sonolex/checkpoints")


class RunMetadata(TypedDict):
    """Progress of a run, as plain JSON."""

    epoch: int  # epochs finished
    history: list[dict[str, float]]  # a row for each of them
    timing: list[dict[str, float]]  # likewise
    seconds: float
    gradients: NotRequired[list[LayerGradient]]  # with train.gradient_flow


class Progress(NamedTuple):
    """State of a run between two epochs, apart from its learner's."""

    best: dict[str, Tensor]  # state of the epoch that is best so far, where the best is chosen; else empty
    kept: dict[str, Tensor]  # state of epochs of the checkpoint ensemble, by `epoch/name`
    predicted: Tensor  # sum over epochs of the scores of validation clips, (clip, class)
    metadata: RunMetadata


def run_key(metadata: Mapping[str, object], code: str) -> str:
    """Return the key of a run: a digest of its metadata and of the version of the code that trains."""
    return hashlib.sha256(json.dumps([metadata, code], sort_keys=True, default=str).encode()).hexdigest()[:24]


def save_checkpoint(path: Path, learner: Learner[M], progress: Progress) -> None:
    """Write a checkpoint atomically; the last one is kept as the one before it."""
    tensors: dict[str, Tensor] = {f"model/{name}": t for name, t in learner.model.state_dict().items()}
    tensors |= {f"average/{name}": t for name, t in learner.average.values.items()}
    tensors |= {f"best/{name}": t for name, t in progress.best.items()}
    tensors |= {f"kept/{name}": t for name, t in progress.kept.items()}
    for index, state in learner.optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser/{index}/{name}": t for name, t in state.items() if t is not None}
    tensors["predicted"] = progress.predicted
    metadata = {**progress.metadata, "average_count": learner.average.count, "scaler": learner.scaler.state_dict()}
    written = {name: t.detach().to("cpu", copy=True).contiguous() for name, t in tensors.items()}
    text = json.dumps(metadata)
    with replacing(path) as partial:
        save_file(written, partial, metadata={"progress": text, "digest": _digest(text, written)})
        with contextlib.suppress(FileNotFoundError):
            path.replace(_previous(path))


def load_checkpoint(path: Path, learner: Learner[M], progress: Progress) -> bool:
    """Restore a saved run in place; return False when there is no checkpoint as it was written.

    Raises OSError where one is there and cannot be read.
    """
    saved = _read(path, learner) or _read(_previous(path), learner)
    if saved is None:
        return False
    text, tensors = saved
    metadata = json.loads(text)
    learner.model.load_state_dict(_below(tensors, "model/"))
    for name, value in _below(tensors, "average/").items():
        learner.average.values[name].copy_(value)
    learner.average.count = metadata.pop("average_count")
    learner.scaler.load_state_dict(metadata.pop("scaler"))
    _load_optimiser(learner.optimiser, _below(tensors, "optimiser/"))
    progress.best.update(_below(tensors, "best/"))
    progress.kept.update(_below(tensors, "kept/"))
    progress.predicted.copy_(tensors["predicted"])
    progress.metadata.update(metadata)
    return True


def remove_checkpoint(path: Path) -> None:
    """Remove the checkpoint of a finished run, and the one before it."""
    path.unlink(missing_ok=True)
    _previous(path).unlink(missing_ok=True)


def _previous(path: Path) -> Path:
    return path.with_name(f"{path.name}.previous")


def _read(path: Path, learner: Learner[M]) -> tuple[str, dict[str, Tensor]] | None:
    """Return the metadata as JSON, and the tensors; None where there is no file, or a damaged one, which is removed."""
    try:
        path.open("rb").close()  # safetensors' own errors do not say which file
    except FileNotFoundError:
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        text = header["progress"]
        intact = header["digest"] == _digest(text, tensors)
    except OSError:
        raise
    except Exception:  # safetensors and torch raise many kinds over a damaged header
        intact = False
    if intact:
        return text, tensors
    log.warning("%s: expected a checkpoint as it was written, found it changed; it is dropped", path)
    if learner.context.is_main_process:
        path.unlink(missing_ok=True)
    return None


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of the metadata and of all tensors with their names."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\x1e{name}\x1f{tensor.dtype}\x1f{tuple(tensor.shape)}\x1f".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _load_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    saved = optimiser.state_dict()
    saved["state"] = {}
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    for name, value in tensors.items():
        index, key = name.split("/")
        if value.ndim > 1:
            # torch 2.11's fused AdamW on a CPU iterates over memory, not over indices: the moments of a channels-last weight
            # must have its memory format, or elements are mixed up.
            value = torch.empty_like(parameters[int(index)]).copy_(value)  # noqa: PLW2901
        saved["state"].setdefault(int(index), {})[key] = value
    optimiser.load_state_dict(saved)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
