"""Published weights as the start of a model: which file, whether it is the right one, and how it gets into ours.

Nothing is loaded in part without a word. Every tensor of the file must be one that a model of our sizes has in that layout,
with the same shape; a head for another number of classes is left new, with a warning. The position table is cut or resized
to our clips and mel bands, but not to other strides: the rule cuts the middle out of a table with more columns, and at
another stride fewer columns cover the same seconds, so that every patch would get the position of some other time.
"""

import logging
import math
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.errors import SonolexError
from pipeline.models.layouts import huggingface, imagenet, original
from pipeline.models.layouts.checkpoint import Checkpoint
from pipeline.models.layouts.huggingface import HuggingFaceParams
from pipeline.models.layouts.imagenet import ImageNetParams
from pipeline.models.layouts.original import OriginalParams
from pipeline.models.positions import fit_grid

log = logging.getLogger(__name__)

StartParams = Annotated[OriginalParams | HuggingFaceParams | ImageNetParams, Field(discriminator="kind")]

_HEAD_WIDTH = 64  # of every DeiT and every AST
_SIGNATURES = {  # a name that tells a layout
    "original": original.NAMES.class_token,
    "huggingface": huggingface.NAMES.class_token,
    "imagenet": original.NAMES.class_token.removeprefix("v."),
}
# What the log-mel frames of every published AST were made with; those of Kaldi, at AST's settings.
_FRONT_END = {
    "front_end": "kaldi",
    "sample_rate": 16000,
    "win_length": 400,
    "hop_length": 160,
    "n_mels": original.N_MELS,
}


def read_start(params: OriginalParams | HuggingFaceParams | ImageNetParams) -> Checkpoint:
    """Open the weights that `start` names. Raises SonolexError where they are missing, of another layout, or changed."""
    if isinstance(params, OriginalParams):
        checkpoint = original.read_checkpoint(params)
    elif isinstance(params, HuggingFaceParams):
        checkpoint = huggingface.read_checkpoint(params)
    else:
        checkpoint = imagenet.read_checkpoint(params)
    if params.digest is not None and params.digest != checkpoint.digest:
        raise SonolexError(
            f"start.digest: {checkpoint.where}: expected {params.digest}, found {checkpoint.digest}; put the file back, or "
            "the digest found into params.yaml if it is meant, and its models are trained again"
        )
    _require_layout(params.kind, checkpoint)
    return checkpoint


def put_in(model: nn.Module, params: Any, checkpoint: Checkpoint) -> None:
    """Put a checkpoint into a fresh `model` of the section `params`, in place. Raises SonolexError where it does not fit."""
    for key, (where, found) in checkpoint.stated.items():
        section, _, name = key.rpartition(".")
        expected = getattr(getattr(params, section) if section else params, name)
        if found != expected:
            raise SonolexError(
                f"start: {checkpoint.where}: {where}: expected {expected}, as {key} of the model says, found {found}; "
                f"set {key} to {found}, or take other weights"
            )
    weights = model.state_dict()
    grid = _grid(params.stem, checkpoint)
    _require_shapes(weights, checkpoint, grid)
    _warn_of_heads(params, checkpoint)
    read = checkpoint.from_layout({name: tensor.float() for name, tensor in checkpoint.tensors.items()}, grid)
    read["stem.table"] = fit_grid(read["stem.table"], *weights["stem.table"].shape[:2])
    if checkpoint.classes is not None and read["head.classify.weight"].shape != weights["head.classify.weight"].shape:
        log.warning(
            "start: %s: its head is for %d classes, this corpus has %d: the head starts new",
            checkpoint.where, len(read["head.classify.weight"]), len(weights["head.classify.weight"]),
        )  # fmt: skip
        read = {name: tensor for name, tensor in read.items() if not name.startswith(("head.norm", "head.classify"))}
    model.load_state_dict(weights | read)
    kept = "kept" if "head.classify.weight" in read else "new"
    log.info("start: %s, digest %s, head %s", checkpoint.where, checkpoint.digest, kept)


def warn_of_front_end(checkpoint: Checkpoint, front_end: Mapping[str, Any]) -> None:
    """Warn where the frames of a run are made in another way than those the weights were trained on."""
    if checkpoint.picture is not None:
        for difference in front_end_differences(front_end, checkpoint.picture[0]):
            log.warning(
                "start: %s: trained on frames of AST: %s; see recipes/ast_base384.yaml", checkpoint.where, difference
            )


def front_end_differences(front_end: Mapping[str, Any], n_mels: int) -> list[str]:
    """Say in what the frames of a run differ from those of every published AST."""
    differences = []
    for key, expected in (_FRONT_END | {"n_mels": n_mels}).items():
        if front_end.get(key, expected) != expected:
            differences.append(f"{key}: expected {expected}, found {front_end[key]}")
    return differences


def _require_layout(kind: str, checkpoint: Checkpoint) -> None:
    if _SIGNATURES[kind] in checkpoint.tensors:
        return
    names = {name.removeprefix(original.PREFIX) for name in checkpoint.tensors}
    others = [other for other, name in _SIGNATURES.items() if name in names]
    found = ", ".join(list(checkpoint.tensors)[:3]) or "no tensors"
    remedy = f"set start.kind to {others[0]}" if others else f"start.kind may be one of {', '.join(_SIGNATURES)}"
    raise SonolexError(
        f"start: {checkpoint.where}: expected the tensor {_SIGNATURES[kind]} of the layout `{kind}`, "
        f"found {found}, ...; {remedy}"
    )


def _grid(stem: Any, checkpoint: Checkpoint) -> tuple[int, int]:
    """Return rows and columns of the checkpoint's position table at the stem's strides."""
    if checkpoint.picture is None:
        table = checkpoint.tensors.get(checkpoint.positions)
        side = 1 if table is None else math.isqrt(table.shape[1] - 2)
        return side, side
    n_mels, frames = checkpoint.picture
    return (n_mels - stem.bands) // stem.stride_bands + 1, (frames - stem.frames) // stem.stride_frames + 1


def _require_shapes(weights: Mapping[str, Tensor], checkpoint: Checkpoint, grid: tuple[int, int]) -> None:
    """Raise SonolexError unless the file holds what a model of our sizes has in its layout, head and table apart."""
    model = {name: tensor.to("meta") for name, tensor in weights.items()}
    model["stem.table"] = torch.empty(*grid, weights["stem.table"].shape[2], device="meta")
    expected = {name: tuple(tensor.shape) for name, tensor in checkpoint.to_layout(model).items()}
    found = {name: tuple(tensor.shape) for name, tensor in checkpoint.tensors.items()}
    if checkpoint.classes in found:
        classes, bias = checkpoint.classes, checkpoint.classes.replace("weight", "bias")
        expected[classes] = (found[classes][0], *expected[classes][1:])
        expected[bias] = found[classes][:1]
    wrong: dict[str, tuple[int, ...] | None] = {
        name: shape for name, shape in found.items() if shape != expected.get(name)
    }
    wrong |= {name: None for name in expected if name not in found}
    if not wrong:
        return
    name = next(iter(wrong))
    depth = len({name.partition("norm1")[0] for name in found if "norm1.weight" in name})
    depth = depth or len({name.partition("layernorm_before")[0] for name in found if "layernorm_before.weight" in name})
    if name == checkpoint.positions:
        remedy = (
            "set stem.stride_frames and stem.stride_bands to those of the weights (a table is not refitted to other "
            "strides), or start.frames to the frames they were trained on"
        )
    else:
        width = checkpoint.tensors[checkpoint.positions].shape[-1] if checkpoint.positions in found else "unknown"
        remedy = (
            f"these weights have width {width} and depth {depth}: set width, depth, heads, mlp_ratio, stem to theirs"
        )
    raise SonolexError(
        f"start: {checkpoint.where}: {name}: expected {_shape(expected.get(name))}, found {_shape(found.get(name))}"
        f"{f' ({len(wrong) - 1} more tensors differ)' if len(wrong) > 1 else ''}; {remedy}"
    )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "no such tensor" if shape is None else f"shape {shape}"


def _warn_of_heads(params: Any, checkpoint: Checkpoint) -> None:
    """Warn of a number of heads that no published model has; but for config.json, nothing in the weights shows it."""
    usual = params.width // _HEAD_WIDTH
    if "heads" not in checkpoint.stated and params.width % _HEAD_WIDTH == 0 and params.heads != usual:
        log.warning(
            "start: %s: published weights of width %d have %d heads, the model has %d: set heads to %d",
            checkpoint.where, params.width, usual, params.heads, usual,
        )  # fmt: skip
