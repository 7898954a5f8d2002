"""Logits of a stored network: over clips, and along the time of each.

A network with kept epochs predicts their mean: the checkpoint ensemble of PSLA and AST (Gong et al., 2021), which takes the
mean of probabilities, as all ensembles here (`pipeline/evaluation/ensemble.py`). Which epochs count is decided before
training, by `train.checkpoint_ensemble`, and not by what any of them says of test clips. Time steps, attention and exports
are of the weights at the end of training.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
import torch

from pipeline.artifacts.clips import LabelKind
from pipeline.artifacts.model import TrainedModel, open_members
from pipeline.errors import SonolexError
from pipeline.evaluation.prediction import CLIPS_PER_BATCH, describe_model, params_of
from pipeline.models.network import Network, NetworkParams
from pipeline.training.batches import Batches
from pipeline.training.distributed import init_distributed
from pipeline.training.inputs import Inputs, warn_of_cut_clips
from pipeline.training.logits import predict_logits


class TimeStepLogits(NamedTuple):
    """Logits along the time of one clip."""

    seconds: np.ndarray  # (time step,) the middle of each, from the clip's start
    logits: np.ndarray  # (time step, class) float32


def predict(model: TrainedModel, inputs: Inputs, clip_ids: Sequence[str]) -> np.ndarray:
    """Return logits (clip, class) float32 for these clips, in order. Processes under torchrun share them."""
    batches = Batches(inputs, clip_ids, model.metadata["input"]["normalisation"])
    members: list[np.ndarray] = []
    with init_distributed() as context:
        for member in open_members(model):
            network = build_network(member).to(context.device)
            if not members:
                warn_of_cut_clips(inputs, clip_ids, network.stem)
            members.append(predict_logits(network, batches, CLIPS_PER_BATCH, context).numpy())
    return members[0] if len(members) == 1 else average_logits(members, model.metadata["label_kind"])


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
    network = build_network(model) if isinstance(params_of(model), NetworkParams) else None
    if network is None or not network.supports_time_steps:
        raise SonolexError(
            f"{model.path}: expected a model that classifies time steps, found {describe_model(model)}; take a network with "
            "a head that does, such as pooled"
        )
    warn_of_cut_clips(inputs, clip_ids, network.stem)
    found = []
    batches = Batches(inputs, clip_ids, model.metadata["input"]["normalisation"])
    with torch.no_grad():
        for stored in batches.in_order(CLIPS_PER_BATCH):
            batch = stored.to(torch.device("cpu"))
            logits, mask = network.classify_time_steps(network.embed(batch.inputs), batch.mask)
            found += [clip[real].numpy() for clip, real in zip(logits, mask, strict=True)]
    rate, stride, centre = inputs.frame_rate, network.encoder.stride, network.encoder.centre
    # A frame stands for the middle of its hop, as in all plots.
    return [TimeStepLogits((stride * np.arange(len(rows)) + centre + 0.5) / rate, rows) for rows in found]


def build_network(model: TrainedModel) -> Network:
    """Return a stored network with its weights, as it predicts."""
    torch.set_flush_denormal(True)
    params = cast(NetworkParams, params_of(model))
    network = Network(params, model.metadata["input"], len(model.metadata["classes"]))
    network.load_state_dict({name: torch.from_numpy(array) for name, array in model.weights.items()})
    return network.eval()
