"""Optimisers and parameter groups: AdamW, Adam with L2 decay as in AST and PSLA, or SGD.

`adamw` (Loshchilov and Hutter, 2019, arXiv 1711.05101) and `sgd` decay matrices only: not norms, biases, embeddings and
class tokens. `adam` adds the decay to the gradient of every weight (Kingma and Ba, 2015, with L2), as the published
recipes do. All run fused: one kernel for all weights, on GPUs and CPUs.

Embeddings may have another learning rate, stored as `factor` of their group.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from pipeline.params import Params

Beta = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[tuple[Beta, Beta], Field(strict=False)]  # of the running means of the gradient and of its square
Decay = Annotated[float, Field(ge=0, le=1)]


class AdamWParams(Params):
    kind: Literal["adamw"]
    betas: Betas
    weight_decay: Decay  # times the learning rate, on matrices only


class AdamParams(Params):
    kind: Literal["adam"]
    betas: Betas
    weight_decay: Decay  # L2, in the gradient of every weight


class SgdParams(Params):
    kind: Literal["sgd"]
    momentum: Beta
    nesterov: bool
    weight_decay: Decay  # L2, in the gradient of matrices only

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> "SgdParams":
        if self.nesterov and not self.momentum:
            raise ValueError(f"nesterov: expected false without momentum, found {self.nesterov}")
        return self


OptimiserParams = Annotated[AdamWParams | AdamParams | SgdParams, Field(discriminator="kind")]


def build_optimiser(
    model: nn.Module, params: OptimiserParams, learning_rate: float, *, embedding_rate: float
) -> torch.optim.Optimizer:
    """Build the optimiser of a model that is on its device; `embedding_rate` is a factor on the learning rate."""
    decayed, plain, embeddings = _kinds_of_weights(model)
    elsewhere = params.weight_decay if isinstance(params, AdamParams) else 0.0
    groups = [
        {"params": decayed, "weight_decay": params.weight_decay, "factor": 1.0},
        {"params": plain, "weight_decay": elsewhere, "factor": 1.0},
        {"params": embeddings, "weight_decay": elsewhere, "factor": embedding_rate},
    ]
    if isinstance(params, SgdParams):
        return torch.optim.SGD(groups, lr=learning_rate, momentum=params.momentum, nesterov=params.nesterov, fused=True)
    kind = torch.optim.AdamW if isinstance(params, AdamWParams) else torch.optim.Adam
    return kind(groups, lr=learning_rate, betas=params.betas, fused=True)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next step."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["factor"]


def _kinds_of_weights(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """Return the matrices; norms, biases and class tokens; and the embeddings."""
    tables = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    # Weights of an LSTM are named weight_ih_l0 and so on.
    names = {id(p): name.rpartition(".")[2] for name, p in model.named_parameters()}
    bare = {key for key, name in names.items() if not name.startswith(("weight", "bias"))}
    decayed = [p for p in model.parameters() if p.ndim > 1 and id(p) not in tables | bare]
    embeddings = [p for p in model.parameters() if id(p) in tables]
    chosen = {id(p) for p in [*decayed, *embeddings]}
    plain = [p for p in model.parameters() if id(p) not in chosen]
    return decayed, plain, embeddings
