"""Logits of a stored network: over clips, and along the time of each.

A network with kept epochs predicts their mean: the checkpoint ensemble of PSLA and AST (Gong et al., 2021), which takes the
mean of probabilities, as all ensembles here (`pipeline/evaluation/ensemble.py`). Which epochs count is decided before
training, by `train.checkpoint_ensemble`, and not by what any of them says of test clips. Time steps, attention and
exported checkpoints are of the weights at the end of training. What else the kept epochs can predict by:
`pipeline/evaluation/variants.py`.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple, cast

import numpy as np
import torch

from pipeline.artifacts.clips import link_of
from pipeline.artifacts.model import TrainedModel, open_members
from pipeline.errors import SonolexError
from pipeline.evaluation.averaging import average_logits
from pipeline.evaluation.prediction import CLIPS_PER_BATCH, Predictor, describe_model, params_of
from pipeline.evaluation.variants import open_variant, variants_of
from pipeline.models.network import Network, NetworkParams
from pipeline.training.batches import Batches
from pipeline.training.distributed import init_distributed
from pipeline.training.inputs import Inputs, warn_of_cut_clips
from pipeline.training.logits import predict_logits

_KEPT_PARAMETERS = 250_000_000  # of all members, up to which they stay in memory: 1 GB


class TimeStepLogits(NamedTuple):
    """Logits along the time of one clip."""

    seconds: np.ndarray  # (time step,) the middle of each, from the clip's start
    logits: np.ndarray  # (time step, class) float32


class NetworkPredictor(Predictor):
    """A stored network, or the networks of its kept epochs, ready to predict."""

    def __init__(self, model: TrainedModel) -> None:
        self._model = model
        self._kept: list[Network] = []
        if model.metadata["num_parameters"] <= _KEPT_PARAMETERS:
            self._kept = [build_network(member) for member in open_members(model)]

    def predict(self, inputs: Inputs, clip_ids: Sequence[str]) -> np.ndarray:
        """Return logits (clip, class) float32 for these clips, in order. Processes under torchrun share them."""
        return average_logits(self._predict_each(self._networks(), inputs, clip_ids), link_of(self._model.metadata))

    def predict_variants(self, inputs: Inputs, clip_ids: Sequence[str]) -> dict[str, np.ndarray]:
        variants = list(variants_of(self._model))
        single = (build_network(open_variant(self._model, name)) for name in variants)
        logits = self._predict_each(chain(self._networks(), single), inputs, clip_ids)
        members = logits[: len(logits) - len(variants)]
        own = average_logits(members, link_of(self._model.metadata))
        return {"": own, **dict(zip(variants, logits[len(members) :], strict=True))}

    def _predict_each(self, networks: Iterable[Network], inputs: Inputs, clip_ids: Sequence[str]) -> list[np.ndarray]:
        """Return the logits (clip, class) of each network; all in one process group, since torchrun forms no second."""
        found: list[np.ndarray] = []
        batches: Batches | None = None
        with init_distributed() as context:
            for network in networks:
                if batches is None:
                    warn_of_cut_clips(inputs, clip_ids, network)
                    batches = _batches(self._model, network, inputs, clip_ids)
                found.append(predict_logits(network.to(context.device), batches, CLIPS_PER_BATCH, context).numpy())
        return found

    def _networks(self) -> Iterator[Network]:
        """Yield the networks whose mean predicts; large ensembles are read from the disk one by one."""
        yield from self._kept or map(build_network, open_members(self._model))


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
    warn_of_cut_clips(inputs, clip_ids, network)
    found = []
    batches = _batches(model, network, inputs, clip_ids)
    with torch.no_grad():
        for stored in batches.in_order(CLIPS_PER_BATCH):
            batch = stored.to(torch.device("cpu"))
            logits, mask = network.classify_time_steps(network.embed(batch.inputs), batch.mask)
            found += [clip[real].numpy() for clip, real in zip(logits, mask, strict=True)]
    centres = [
        network.time_step_centres(len(rows), inputs.num_frames(clip))
        for clip, rows in zip(clip_ids, found, strict=True)
    ]
    # A frame stands for the middle of its hop, as in all plots.
    return [
        TimeStepLogits((frames + 0.5) / inputs.frame_rate, rows) for frames, rows in zip(centres, found, strict=True)
    ]


def _batches(model: TrainedModel, network: Network, inputs: Inputs, clip_ids: Sequence[str]) -> Batches:
    return Batches(inputs, clip_ids, model.metadata["input"]["normalisation"], network.frames_read)


def build_network(model: TrainedModel) -> Network:
    """Return a stored network with its weights, as it predicts."""
    torch.set_flush_denormal(True)
    params = cast(NetworkParams, params_of(model))
    network = Network(params, model.metadata["input"], len(model.metadata["classes"]), link_of(model.metadata))
    network.load_state_dict({name: torch.from_numpy(array) for name, array in model.weights.items()})
    return network.eval()
