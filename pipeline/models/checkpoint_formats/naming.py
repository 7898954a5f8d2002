"""Renaming of AST weights between Sonolex and other programs, in both directions, by one table.

Other differences are the same in every format: class and distillation token are separate tensors, their positions are the
first rows of the position table, and a patch is (band, frame) where ours is (frame, band).

Conventions: D width; the table of another program is (1, 2 + rows * columns, D), with time as the fastest axis; ours is a
grid (row, column, D).
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

_BLOCKS = "encoder.blocks."


class Names(NamedTuple):
    """Another program's names of our modules."""

    modules: Mapping[str, str]  # outside the blocks
    blocks: str  # prefix of a block's number
    block_modules: Mapping[str, str]
    class_token: str
    distillation_token: str
    positions: str
    projection: str  # of the patches


def to_names(weights: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Return our weights with the names and shapes of another program."""
    renamed = {}
    special = {"head.tokens", "head.token_positions", "stem.table", "stem.project.weight"}
    for name, tensor in weights.items():
        if name not in special:
            renamed[_to_name(name, names)] = tensor
    renamed[names.projection] = weights["stem.project.weight"].transpose(2, 3)
    renamed[names.class_token], renamed[names.distillation_token] = weights["head.tokens"][:, None, None].unbind()
    table = weights["stem.table"].flatten(0, 1)
    renamed[names.positions] = torch.cat([weights["head.token_positions"], table])[None]
    return renamed


def from_names(tensors: Mapping[str, Tensor], names: Names, grid: tuple[int, int]) -> dict[str, Tensor]:
    """Return our weights from those of another program, whose position table is a `grid` of (rows, columns)."""
    special = {names.class_token, names.distillation_token, names.positions, names.projection}
    weights = {_from_name(name, names): tensor for name, tensor in tensors.items() if name not in special}
    weights["stem.project.weight"] = tensors[names.projection].transpose(2, 3)
    weights["head.tokens"] = torch.cat([tensors[names.class_token][0], tensors[names.distillation_token][0]])
    table = tensors[names.positions][0]
    weights["head.token_positions"], weights["stem.table"] = table[:2], table[2:].reshape(*grid, -1)
    return weights


def _to_name(name: str, names: Names) -> str:
    module, _, kind = name.rpartition(".")
    if not module.startswith(_BLOCKS):
        return f"{names.modules[module]}.{kind}"
    number, _, inner = module.removeprefix(_BLOCKS).partition(".")
    return f"{names.blocks}{number}.{names.block_modules[inner]}.{kind}"


def _from_name(name: str, names: Names) -> str:
    module, _, kind = name.rpartition(".")
    if not module.startswith(names.blocks):
        return f"{_key(names.modules, module)}.{kind}"
    number, _, inner = module.removeprefix(names.blocks).partition(".")
    return f"{_BLOCKS}{number}.{_key(names.block_modules, inner)}.{kind}"


def _key(table: Mapping[str, str], value: str) -> str:
    return next(key for key, other in table.items() if other == value)
