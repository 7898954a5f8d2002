"""Checkpoint format of AST's authors: a torch state dict with the prefix `module.`, 159 tensors for twelve blocks.

Four of them are unused heads for ImageNet's classes: dropped on reading, and written as zeros. The file states neither the
strides nor the frames and statistics of its training, so params do; `published_run` finds those of the authors' own runs by
the shape of the position table. Norms have the epsilons of timm (1e-6) and of torch
(1e-5, before the classes).
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from pipeline.artifacts.files import file_digest
from pipeline.errors import SonolexError
from pipeline.models.checkpoint_formats.ast_checkpoint import (
    N_MELS,
    AstCheckpoint,
    AstClassifierParams,
    AstSizes,
    usual_heads,
)
from pipeline.models.checkpoint_formats.files import read_tensors, require_file
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


STRIDES = (10, 12, 14, 16)  # of published models, the same in both directions


class Run(NamedTuple):
    """Settings of the authors' training on one corpus (https://github.com/YuanGongND/ast, egs/ and src/run.py)."""

    corpus: str
    frames: int
    mean: float  # of log-mel values
    std: float


RUNS = (
    Run("AudioSet", 1024, -4.2677393, 4.5689974),
    Run("ESC-50", 512, -6.6268077, 5.358466),
    Run("Speech Commands", 128, -6.845978, 5.5654526),
)


class OriginalParams(AstClassifierParams):
    kind: Literal["original"]  # `source` is the .pth file
    frames: PositiveInt  # of clips in its training: 1024 for AudioSet, 128 for Speech Commands
    mean: float  # of the log-mel values in its training
    std: PositiveFloat

    @property
    def has_statistics(self) -> bool:
        return True

    def require_source(self) -> None:
        require_file(input_path(self.source))


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
        self.statistics, self.rows = [(params.mean, params.std)], params.classes
        self.check(params)

    @staticmethod
    def to_format(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return our weights in the format, without prefix and unused heads."""
        return to_names(weights, NAMES)

    @staticmethod
    def from_format(tensors: Mapping[str, Tensor], grid: tuple[int, int]) -> dict[str, Tensor]:
        return from_names(tensors, NAMES, grid)


def published_run(tensors: Mapping[str, Tensor], where: str) -> tuple[Run, AstSizes]:
    """Return the authors' run that tensors come from, and the network's sizes, by the shapes of the tensors.

    Names are without prefix. Raises SonolexError for a missing tensor, and a position table that none of the runs has.
    """
    first = f"{NAMES.blocks}0.{NAMES.block_modules['fc1']}.weight"
    for name in (NAMES.positions, NAMES.projection, first):
        if name not in tensors:
            raise SonolexError(f"{where}: expected a tensor {name} of an AST, found none; fetch the file again")
    num_positions, width = tensors[NAMES.positions].shape[1] - 2, tensors[NAMES.positions].shape[2]
    patch = tensors[NAMES.projection].shape[2]
    found = [(run, stride) for run in RUNS for stride in STRIDES if _positions(run, patch, stride) == num_positions]
    if not found:
        known = ", ".join(f"{run.frames} ({run.corpus})" for run in RUNS)
        raise SonolexError(
            f"{where}: {NAMES.positions}: expected the positions of {known} frames at strides of "
            f"{', '.join(map(str, STRIDES))}, found {num_positions}, from which frames and strides do not follow; write the "
            "model as a Hugging Face folder, whose config.json states them"
        )
    run, stride = found[0]
    depth = sum(name.startswith(NAMES.blocks) and name.endswith(".norm1.weight") for name in tensors)
    hidden = len(tensors[first])
    return run, AstSizes(N_MELS, run.frames, patch, stride, stride, width, depth, usual_heads(width), hidden)


def _positions(run: Run, patch: int, stride: int) -> int:
    return ((N_MELS - patch) // stride + 1) * ((run.frames - patch) // stride + 1)


def to_file(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a file for the authors' program, unused heads and prefix included."""
    tensors = OriginalCheckpoint.to_format(weights)
    width = weights["head.tokens"].shape[1]
    for name, size in _DEAD.items():
        tensors |= {f"{name}.weight": torch.zeros(size, width), f"{name}.bias": torch.zeros(size)}
    return {f"{PREFIX}{name}": tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
