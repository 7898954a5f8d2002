"""Low-rank adapters (LoRA: Hu et al., 2022, arXiv 2106.09685) of an encoder's linear maps, by the package peft.

Of the encoder only the adapters are trained, of the other parts only the head. At the end each product of two adapters is
added to the weight that it adapts, so that the stored network has the names and shapes of one without adapters, and
prediction needs no peft. Averages of weights are those of the adapters.

Conventions: an adapted weight (out, in) is W + alpha / rank * B A, with A (rank, in) and B (out, rank).
"""

from collections.abc import Mapping

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from pipeline.errors import ParamsError, SonolexError
from pipeline.models.network import Network
from pipeline.models.weight_groups import weight_groups
from pipeline.params import Params

_NAME = "default"  # of the adapters in peft
_BASE, _DOWN, _UP = "base_layer.", f"lora_A.{_NAME}.weight", f"lora_B.{_NAME}.weight"


class LoraParams(Params):
    rank: PositiveInt
    alpha: PositiveInt  # the product of the adapters is multiplied by alpha / rank
    dropout: float = Field(ge=0, lt=1)  # of the adapters' input
    targets: list[str] = Field(min_length=1)  # last names of linear maps in the encoder, such as qkv


def add_adapters(network: Network, params: LoraParams) -> None:
    """Add adapters to a network on its device, in place, and freeze what they replace.

    Raises ParamsError for targets that the encoder has not, SonolexError without peft.
    """
    require_targets(network, params, "train.lora")
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise SonolexError(
            "train.lora: expected the package peft, found none; install it (pip install peft), or set train.lora to null"
        ) from None
    config = LoraConfig(
        r=params.rank, lora_alpha=params.alpha, lora_dropout=params.dropout, target_modules=params.targets, bias="none"
    )
    network.requires_grad_(False)
    inject_adapter_in_model(config, network.encoder, adapter_name=_NAME)
    head = weight_groups(network)["head"]
    for name, weight in network.named_parameters():
        if head.holds(name):
            weight.requires_grad_(True)


def require_targets(network: Network, params: LoraParams, where: str) -> None:
    """Raise ParamsError for a target that names no linear map of the encoder which adapters act on."""
    linear = [name for name, module in network.encoder.named_modules() if isinstance(module, nn.Linear)]
    names = dict.fromkeys(name.rpartition(".")[2] for name in linear)
    known = [name for name in names if name not in network.encoder.unadaptable]
    for target in params.targets:
        if target not in known:
            raise ParamsError(
                f"{where}.targets: expected linear maps of the encoder, found {target}; it has: {', '.join(known) or 'none'}"
            )


def merge_adapters(state: Mapping[str, Tensor], params: LoraParams) -> dict[str, Tensor]:
    """Return the state of the network without adapters whose output is that of the state with them."""
    merged = {}
    for name, values in state.items():
        before, found, last = name.rpartition(_BASE)
        if not found:
            if _DOWN not in name and _UP not in name:
                merged[name] = values
        elif last == "weight":
            product = state[f"{before}{_UP}"].double() @ state[f"{before}{_DOWN}"].double()
            merged[f"{before}{last}"] = (values.double() + params.alpha / params.rank * product).to(torch.float32)
        else:
            merged[f"{before}{last}"] = values
    return merged
