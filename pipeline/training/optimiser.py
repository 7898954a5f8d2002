"""Optimisers and parameter groups: AdamW, Adam with L2 decay as in AST and PSLA, or SGD.

`adamw` (Loshchilov and Hutter, 2019, arXiv 1711.05101) and `sgd` decay matrices only: not norms, biases, embeddings and
class tokens. `adam` adds the decay to the gradient of every weight (Kingma and Ba, 2015, with L2), as the published
recipes do. All run fused: one kernel for all weights, on GPUs and CPUs.

The learning rate of a weight is the run's times a factor, stored as `factor` of its group: that of its part of the network,
times `layer_decay` for each block between it and the head (Clark et al., 2020, arXiv 2003.10555; Bao et al., 2021), times
`embedding_rate` for embeddings. A schedule scales all of them alike.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from pipeline.models.network import Network
from pipeline.models.weight_groups import PARTS, depths, weight_groups
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


RateFactor = Annotated[float, Field(ge=0, le=1000)]

OptimiserParams = Annotated[AdamWParams | AdamParams | SgdParams, Field(discriminator="kind")]


class RateParams(Params):
    """Factors on the learning rate by part of the network; 0 keeps a part as it is, and costs as much as training it."""

    input: RateFactor
    stem: RateFactor
    encoder: RateFactor
    head: RateFactor
    layer_decay: float = Field(gt=0, le=1)  # for each block between a weight and the head

    @property
    def are_alike(self) -> bool:
        """Whether all weights have the run's learning rate."""
        return all(factor == 1 for factor in self.model_dump().values())


def build_optimiser(
    model: nn.Module,
    params: OptimiserParams,
    learning_rate: float,
    *,
    embedding_rate: float,
    rates: RateParams | None = None,
) -> torch.optim.Optimizer:
    """Build the optimiser of a model on its device; `embedding_rate` and `rates` are factors on the learning rate."""
    decayed, plain, embeddings = _kinds_of_weights(model)
    elsewhere = params.weight_decay if isinstance(params, AdamParams) else 0.0
    factors = rate_factors(model, rates)
    groups = [
        *_by_factor(decayed, factors, 1.0, params.weight_decay),
        *_by_factor(plain, factors, 1.0, elsewhere),
        *_by_factor(embeddings, factors, embedding_rate, elsewhere),
    ]
    if isinstance(params, SgdParams):
        return torch.optim.SGD(groups, lr=learning_rate, momentum=params.momentum, nesterov=params.nesterov, fused=True)
    kind = torch.optim.AdamW if isinstance(params, AdamWParams) else torch.optim.Adam
    return kind(groups, lr=learning_rate, betas=params.betas, fused=True)


def rate_factors(model: nn.Module, rates: RateParams | None) -> dict[nn.Parameter, float]:
    """Return the factor on the learning rate of each weight of a network, apart from `embedding_rate`."""
    if rates is None or rates.are_alike:
        return dict.fromkeys(model.parameters(), 1.0)
    assert isinstance(model, Network)  # pretraining has no factors, see `PretrainParams.settings`
    groups, deep = weight_groups(model), depths(model)
    of_part = {part: float(factor) for part, factor in rates.model_dump(include=set(PARTS)).items()}
    parts = {name: next(part for part in PARTS if part in groups and groups[part].holds(name)) for name in deep}
    return {weight: of_part[parts[name]] * rates.layer_decay ** deep[name] for name, weight in model.named_parameters()}


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


def _by_factor(
    weights: Iterable[nn.Parameter], factors: Mapping[nn.Parameter, float], factor: float, weight_decay: float
) -> list[dict[str, object]]:
    """Return a group of the optimiser for each learning rate among these weights."""
    found: dict[float, list[nn.Parameter]] = {}
    for weight in weights:
        found.setdefault(factor * factors[weight], []).append(weight)
    return [{"params": members, "weight_decay": weight_decay, "factor": rate} for rate, members in found.items()]
