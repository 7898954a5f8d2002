"""Weights of a network's head, divided into those of each class and those that all classes share.

A head names the weights that have a row for each class, or the list with a module for each (`pipeline/models/parts.py`).

Conventions: K class, H attention head.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pipeline.models.network import Network


class HeadWeights(NamedTuple):
    """Weights of a head by name; the names of a class's own weights are the same for all classes."""

    shared: Mapping[str, Tensor]
    by_class: list[Mapping[str, Tensor]]


def split_classes(network: "Network", weights: Mapping[str, Tensor], num_classes: int) -> HeadWeights:
    """Divide the head's weights of a network like `network`, for so many classes; others of its weights are left out.

    Weights that cannot be those of so many classes are in `shared`.
    """
    shared: dict[str, Tensor] = {}
    by_class: list[dict[str, Tensor]] = [{} for _ in range(num_classes)]
    for name, tensor in weights.items():
        number, _, rest = name.removeprefix(_modules(network)).partition(".")
        if not network.is_of_head(name):
            continue
        if name.startswith(_modules(network)) and number.isdecimal() and int(number) < num_classes:
            by_class[int(number)][f"{_modules(network)}{rest}"] = tensor
        elif name in network.class_weights and len(tensor) % num_classes == 0:  # (H * K, ...)
            for own, rows in zip(by_class, tensor.reshape(-1, num_classes, *tensor.shape[1:]).unbind(1), strict=True):
                own[name] = rows
        else:
            shared[name] = tensor
    return HeadWeights(shared, list(by_class))


def join_classes(network: "Network", head: HeadWeights) -> dict[str, Tensor]:
    """Return the weights of a head by their names in the network: the inverse of `split_classes`."""
    joined = dict(head.shared)
    for name in head.by_class[0]:
        parts = [own[name] for own in head.by_class]
        if name.startswith(_modules(network)):
            rest = name.removeprefix(_modules(network))
            joined |= {f"{_modules(network)}{number}.{rest}": part for number, part in enumerate(parts)}
        else:
            joined[name] = torch.stack(parts, dim=1).flatten(0, 1)
    return joined


def _modules(network: "Network") -> str:
    """Return the prefix of the weights of modules for one class; of a head without such modules one that no name has."""
    return f"head.{network.head.class_modules or '-'}."
