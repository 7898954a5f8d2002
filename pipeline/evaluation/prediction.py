"""Logits from a stored model, with nothing but the model's own folder and the clips' frames or tokens.

A model with kept epochs predicts their mean: the checkpoint ensemble of PSLA and AST (Gong et al., 2021), which takes the
mean of probabilities, as all ensembles here (`pipeline/evaluation/ensemble.py`). Which epochs count is decided before
training, by `train.keep_epochs`, and not by what any of them says of test clips. Time steps, attention and exports are of
the weights at the end of training.

Under torchrun the processes share a neural model's clips and each returns all logits; a baseline's they compute each.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from pipeline.artifacts.clips import LabelKind
from pipeline.artifacts.model import TrainedModel, open_members
from pipeline.errors import SonolexError
from pipeline.models.base import ModelParams
from pipeline.models.registry import BASELINES, validate_model_params
from pipeline.training.inputs import Inputs, warn_of_cut_clips

if TYPE_CHECKING:
    from pipeline.models.network import Network

CLIPS_PER_BATCH = 64


class TimeStepLogits(NamedTuple):
    """Logits along the time of one clip."""

    seconds: np.ndarray  # (time step,) the middle of each, from the clip's start
    logits: np.ndarray  # (time step, class) float32


def predict(model: TrainedModel, inputs: Inputs, clip_ids: Sequence[str]) -> np.ndarray:
    """Return logits (clip, class) float32 for these clips, in order."""
    params = _params(model)
    if params.kind in BASELINES:
        batches = [clip_ids[i : i + CLIPS_PER_BATCH] for i in range(0, len(clip_ids), CLIPS_PER_BATCH)]
        baseline = BASELINES[params.kind](params)
        return np.concatenate([baseline.predict(model.weights, inputs.arrays(ids)) for ids in batches])

    from pipeline.training.batches import Batches  # baselines predict without torch
    from pipeline.training.distributed import open_world
    from pipeline.training.logits import predict_logits

    batches_of_clips = Batches(inputs, clip_ids, model.facts["input"]["normalisation"])
    members: list[np.ndarray] = []
    with open_world() as world:
        for member in open_members(model):
            network = build_network(member).to(world.device)
            if not members:
                warn_of_cut_clips(inputs, clip_ids, network.stem)
            members.append(predict_logits(network, batches_of_clips, CLIPS_PER_BATCH, world).numpy())
    return members[0] if len(members) == 1 else average_logits(members, model.facts["label_kind"])


def average_logits(members: Sequence[np.ndarray], label_kind: LabelKind) -> np.ndarray:
    """Return logits (clip, class) float32 whose probabilities are the mean of those of the members' logits.

    For one label a clip they are logarithms of the probabilities. Computed in logarithms, so that no probability, however
    small, becomes zero.
    """
    logits = np.stack(members).astype(np.float64)  # (member, clip, class)
    if label_kind == "one":
        logs = logits - np.logaddexp.reduce(logits, axis=2, keepdims=True)
        mean = np.logaddexp.reduce(logs, axis=0) - np.log(len(members))
    else:
        yes, no = -np.logaddexp(0, -logits), -np.logaddexp(0, logits)
        mean = np.logaddexp.reduce(yes, axis=0) - np.logaddexp.reduce(no, axis=0)
    return np.asarray(mean, dtype=np.float32)


def predict_time_steps(model: TrainedModel, inputs: Inputs, clip_ids: Sequence[str]) -> list[TimeStepLogits]:
    """Return logits along the time of each of these clips: one row for every time step of the network.

    A clip has the same alone and beside longer ones. How time steps relate to the clip: `Network.classify_time_steps`.
    Raises SonolexError for a model that has none.
    """
    import torch

    from pipeline.training.batches import Batches

    network = None if _params(model).kind in BASELINES else build_network(model)
    if network is None or not network.supports_time_steps:
        raise SonolexError(
            f"{model.path}: expected a model that classifies time steps, found {describe_model(model)}; take a network with "
            "a head that does, such as pooled"
        )
    warn_of_cut_clips(inputs, clip_ids, network.stem)
    found = []
    batches = Batches(inputs, clip_ids, model.facts["input"]["normalisation"])
    with torch.no_grad():
        for stored in batches.in_order(CLIPS_PER_BATCH):
            batch = stored.to(torch.device("cpu"))
            logits, mask = network.classify_time_steps(network.embed(batch.inputs), batch.mask)
            found += [clip[real].numpy() for clip, real in zip(logits, mask, strict=True)]
    rate, stride, centre = inputs.frame_rate, network.encoder.stride, network.encoder.centre
    # A frame stands for the middle of its hop, as in all plots.
    return [TimeStepLogits((stride * np.arange(len(rows)) + centre + 0.5) / rate, rows) for rows in found]


def describe_model(model: TrainedModel) -> str:
    """Return a stored model's kind and the kinds of its parts, for messages."""
    section = model.facts["params"]
    parts = [f"{name} {section[name]['kind']}" for name in ("input", "stem", "encoder", "head") if name in section]
    return " with ".join(
        [f"the kind {section['kind']}", ", ".join(parts)] if parts else [f"the kind {section['kind']}"]
    )


def build_network(model: TrainedModel) -> "Network":
    """Return a stored network with its weights, as it predicts."""
    import torch

    from pipeline.models.network import Network, NetworkParams

    torch.set_flush_denormal(True)
    params = cast(NetworkParams, _params(model))
    network = Network(params, model.facts["input"], len(model.facts["classes"]))
    network.load_state_dict({name: torch.from_numpy(array) for name, array in model.weights.items()})
    return network.eval()


def _params(model: TrainedModel) -> ModelParams:
    return validate_model_params(model.facts["model"], model.facts["params"], model.path / "model.json")
