"""The layout of AST's authors: a torch state dict, every name behind `module.`, 159 tensors for twelve blocks.

Four of them are the heads for ImageNet's classes, which nothing reads: dropped, and written as zeros. The file says neither
strides nor the frames and the statistics it was trained with, so `start` does. Norms have the epsilons of timm (1e-6) and of
torch (1e-5, before the classes).
"""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from pipeline.artifacts.files import file_digest
from pipeline.models.encoder import NORM_EPSILON
from pipeline.models.heads import HEAD_NORM_EPSILON
from pipeline.models.layouts.checkpoint import Checkpoint
from pipeline.models.layouts.files import read_tensors
from pipeline.models.layouts.naming import Names, from_names, to_names
from pipeline.params import Params
from pipeline.paths import input_path

PREFIX = "module."
N_MELS = 128  # of every published AST
_DEAD = {"v.head": 1000, "v.head_dist": 1000}

NAMES = Names(
    modules={
        "stem.project": "v.patch_embed.proj",
        "encoder.norm": "v.norm",
        "head.norm": "mlp_head.0",
        "head.classify": "mlp_head.1",
    },
    blocks="v.blocks.",
    block_modules={
        "norm1": "norm1",
        "qkv": "attn.qkv",
        "proj": "attn.proj",
        "norm2": "norm2",
        "fc1": "mlp.fc1",
        "fc2": "mlp.fc2",
    },
    class_token="v.cls_token",  # noqa: S106 - a name
    distillation_token="v.dist_token",  # noqa: S106
    positions="v.pos_embed",
    projection="v.patch_embed.proj.weight",
)


class OriginalParams(Params):
    kind: Literal["original"]
    source: str  # the .pth file
    digest: str | None  # SHA-256 of the file, its first 32 digits; null takes whatever is there
    frames: PositiveInt  # that it was trained on: 1024 for AudioSet, 128 for Speech Commands
    mean: float  # of the log-mel values that it was trained on
    deviation: PositiveFloat


def read_checkpoint(params: OriginalParams) -> Checkpoint:
    """Open a `.pth` file. Raises SonolexError."""
    path = input_path(params.source)
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in read_tensors(path).items()}
    return Checkpoint(
        where=str(path),
        digest=file_digest(path),
        tensors={name: tensor for name, tensor in tensors.items() if name.rpartition(".")[0] not in _DEAD},
        picture=(N_MELS, params.frames),
        stated={},
        statistics=(params.mean, params.deviation),
        norm_epsilons=(NORM_EPSILON, HEAD_NORM_EPSILON),
        positions=NAMES.positions,
        classes="mlp_head.1.weight",
        to_layout=to_layout,
        from_layout=from_layout,
    )


def to_layout(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our weights as the layout has them, without prefix and dead heads."""
    return to_names(weights, NAMES)


def from_layout(tensors: Mapping[str, Tensor], grid: tuple[int, int]) -> dict[str, Tensor]:
    """Return tensors of the layout as our weights; `grid` is (rows, columns) of the position table."""
    return from_names(tensors, NAMES, grid)


def to_file(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return all that the authors' program expects in its file, dead heads and prefix included."""
    tensors = to_layout(weights)
    width = weights["head.tokens"].shape[1]
    for name, size in _DEAD.items():
        tensors |= {f"{name}.weight": torch.zeros(size, width), f"{name}.bias": torch.zeros(size)}
    return {f"{PREFIX}{name}": tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
