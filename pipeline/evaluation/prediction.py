"""Logits from a stored model, with nothing but the model's own folder and the clips' frames or tokens.

Under torchrun the processes share a neural model's clips and each returns all logits; a baseline's they compute each.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.artifacts.model import TrainedModel
from pipeline.models.registry import is_neural, model_module
from pipeline.params import validate_params
from pipeline.training.inputs import Inputs

if TYPE_CHECKING:
    from torch import nn

CLIPS_PER_BATCH = 64


def predict(model: TrainedModel, inputs: Inputs, clip_ids: Sequence[str]) -> np.ndarray:
    """Return logits (clip, class) float32 for these clips, in order."""
    kind = model.facts["params"]["kind"]
    module = model_module(kind)
    if not is_neural(kind):
        params = _params(model)
        batches = [clip_ids[i : i + CLIPS_PER_BATCH] for i in range(0, len(clip_ids), CLIPS_PER_BATCH)]
        return np.concatenate([module.predict(params, model.weights, inputs.arrays(ids)) for ids in batches])

    import torch  # baselines predict without it

    from pipeline.training.batches import Batches
    from pipeline.training.distributed import open_world
    from pipeline.training.logits import predict_logits

    torch.set_flush_denormal(True)
    network = build_network(model)
    batches_of_clips = Batches(inputs, clip_ids, model.facts["input"]["normalisation"])
    with open_world() as world:
        logits: np.ndarray = predict_logits(network.to(world.device), batches_of_clips, CLIPS_PER_BATCH, world).numpy()
    return logits


def build_network(model: TrainedModel) -> "nn.Module":
    """Return a neural model as a torch module with its trained weights, on the CPU."""
    import torch

    module = model_module(model.facts["params"]["kind"])
    network: nn.Module = module.build(_params(model), model.facts["input"], len(model.facts["classes"]))
    network.load_state_dict({name: torch.from_numpy(array) for name, array in model.weights.items()})
    return network


def _params(model: TrainedModel) -> Any:
    kind = model_module(model.facts["params"]["kind"]).Params
    return validate_params(kind, model.facts["params"], "params", model.path / "model.json")
