"""Checkpoint format of AST's authors: a torch state dict with the prefix `module.`, 159 tensors for twelve blocks.

Four of them are unused heads for ImageNet's classes: dropped on reading, and written as zeros. The file states neither the
strides nor the frames and statistics of its training, so params do. Norms have the epsilons of timm (1e-6) and of torch
(1e-5, before the classes).
"""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from pipeline.artifacts.files import file_digest
from pipeline.models.checkpoint_formats.ast_checkpoint import N_MELS, AstCheckpoint, AstCheckpointParams
from pipeline.models.checkpoint_formats.files import read_tensors
from pipeline.models.checkpoint_formats.naming import Names, from_names, to_names
from pipeline.paths import input_path

PREFIX = "module."
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


class OriginalParams(AstCheckpointParams):
    kind: Literal["original"]  # `source` is the .pth file
    frames: PositiveInt  # of clips in its training: 1024 for AudioSet, 128 for Speech Commands
    mean: float  # of the log-mel values in its training
    std: PositiveFloat

    @property
    def has_statistics(self) -> bool:
        return True


class OriginalCheckpoint(AstCheckpoint):
    Params = OriginalParams
    signature = NAMES.class_token
    positions = NAMES.positions
    classes = "mlp_head.1.weight"

    def __init__(self, params: OriginalParams) -> None:
        path = input_path(params.source)
        tensors = {name.removeprefix(PREFIX): tensor for name, tensor in read_tensors(path).items()}
        self.where, self.digest = str(path), file_digest(path)
        self.tensors = {name: tensor for name, tensor in tensors.items() if name.rpartition(".")[0] not in _DEAD}
        self.input_size = (N_MELS, params.frames)
        self.statistics = (params.mean, params.std)
        self.check(params)

    @staticmethod
    def to_format(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return our weights in the format, without prefix and unused heads."""
        return to_names(weights, NAMES)

    @staticmethod
    def from_format(tensors: Mapping[str, Tensor], grid: tuple[int, int]) -> dict[str, Tensor]:
        return from_names(tensors, NAMES, grid)


def to_file(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a file for the authors' program, unused heads and prefix included."""
    tensors = OriginalCheckpoint.to_format(weights)
    width = weights["head.tokens"].shape[1]
    for name, size in _DEAD.items():
        tensors |= {f"{name}.weight": torch.zeros(size, width), f"{name}.bias": torch.zeros(size)}
    return {f"{PREFIX}{name}": tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
