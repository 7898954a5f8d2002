"""Logits from a stored model, with nothing but the model's own folder and the clips' frames or tokens.

Under torchrun the processes share a neural model's clips and each returns all logits; a baseline's they compute each.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pipeline.artifacts.model import TrainedModel
from pipeline.errors import SonolexError
from pipeline.models.registry import is_neural, model_module
from pipeline.params import validate_params
from pipeline.training.inputs import Inputs, warn_of_cut_clips

CLIPS_PER_BATCH = 64


class ColumnLogits(NamedTuple):
    """What a model says of one clip along its time."""

    seconds: np.ndarray  # (column,) the middle of each column, from the clip's start
    logits: np.ndarray  # (column, class) float32


def predict(model: TrainedModel, inputs: Inputs, clip_ids: Sequence[str]) -> np.ndarray:
    """Return logits (clip, class) float32 for these clips, in order."""
    if not is_neural(model.facts["params"]["kind"]):
        module, params = _module(model)
        batches = [clip_ids[i : i + CLIPS_PER_BATCH] for i in range(0, len(clip_ids), CLIPS_PER_BATCH)]
        return np.concatenate([module.predict(params, model.weights, inputs.arrays(ids)) for ids in batches])

    from pipeline.training.batches import Batches  # baselines predict without torch
    from pipeline.training.distributed import open_world
    from pipeline.training.logits import predict_logits

    network = build_network(model)
    warn_of_cut_clips(inputs, clip_ids, network)
    batches_of_clips = Batches(inputs, clip_ids, model.facts["input"]["normalisation"])
    with open_world() as world:
        logits: np.ndarray = predict_logits(network.to(world.device), batches_of_clips, CLIPS_PER_BATCH, world).numpy()
    return logits


def predict_columns(model: TrainedModel, inputs: Inputs, clip_ids: Sequence[str]) -> list[ColumnLogits]:
    """Return logits along the time of each of these clips: one row for every column of the model's positions.

    A clip says the same alone and beside longer ones. How columns relate to the clip: pipeline/models/heads.py. Raises
    SonolexError for a model that has no columns.
    """
    import torch

    from pipeline.training.batches import Batches

    network = build_network(model) if is_neural(model.facts["params"]["kind"]) else None
    if not hasattr(network, "classify_columns"):
        raise SonolexError(
            f"{model.path}: expected a model that reads a clip column by column, found the kind "
            f"{model.facts['params']['kind']}; ask a transformer"
        )
    assert network is not None
    warn_of_cut_clips(inputs, clip_ids, network)
    found = []
    batches = Batches(inputs, clip_ids, model.facts["input"]["normalisation"])
    with torch.no_grad():
        for batch in batches.in_order(CLIPS_PER_BATCH):
            logits, mask = network.classify_columns(network.embed(batch.inputs), batch.mask)
            found += [clip[real].numpy() for clip, real in zip(logits, mask, strict=True)]
    rate, stem = inputs.frame_rate, network.stem
    # A frame stands for the middle of its hop, as in all of Sonolex's pictures.
    return [ColumnLogits((stem.stride * np.arange(len(rows)) + stem.centre + 0.5) / rate, rows) for rows in found]


def build_network(model: TrainedModel) -> Any:
    """Return the torch module of a stored neural model, with its weights, as it predicts."""
    import torch

    torch.set_flush_denormal(True)
    module, params = _module(model)
    network = module.build(params, model.facts["input"], len(model.facts["classes"]))
    network.load_state_dict({name: torch.from_numpy(array) for name, array in model.weights.items()})
    return network.eval()


def _module(model: TrainedModel) -> tuple[Any, Any]:
    module = model_module(model.facts["params"]["kind"])
    return module, validate_params(module.Params, model.facts["params"], "params", model.path / "model.json")
