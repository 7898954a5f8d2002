"""The layout of DeiT's distilled models, as timm has them (Touvron et al., 2021): AST's start from photographs.

The names are those inside the AST authors' `v.`. Photographs have three channels: the projection of patches is summed over
them (AST, section 2.2). The heads are for other classes, and dropped. Norms have timm's epsilon, 1e-6.
"""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from pipeline.artifacts.files import file_digest
from pipeline.errors import SonolexError
from pipeline.models.encoder import NORM_EPSILON
from pipeline.models.heads import HEAD_NORM_EPSILON
from pipeline.models.layouts import original
from pipeline.models.layouts.checkpoint import Checkpoint
from pipeline.models.layouts.files import hub_file, read_tensors
from pipeline.params import Params
from pipeline.paths import input_path

_CHANNELS = 3
_INSIDE = "v."
_PROJECTION = original.NAMES.projection.removeprefix(_INSIDE)
_HEADS = ("head.", "head_dist.")


class ImageNetParams(Params):
    kind: Literal["imagenet"]
    source: str  # a model of timm, such as deit_base_distilled_patch16_384, or a file
    digest: str | None  # SHA-256 of the weights file, its first 32 digits; null takes whatever is there


def read_checkpoint(params: ImageNetParams) -> Checkpoint:
    """Open DeiT's weights, from a file or by the name that timm has for them. Raises SonolexError."""
    path = input_path(params.source)
    if not path.exists():
        path = hub_file(_timm_repository(params.source), ["model.safetensors"], start=params.source)
    tensors = {name: tensor for name, tensor in read_tensors(path).items() if not name.startswith(_HEADS)}
    return Checkpoint(
        where=str(path),
        digest=file_digest(path),
        tensors=tensors,
        picture=None,
        stated={},
        statistics=None,
        norm_epsilons=(NORM_EPSILON, HEAD_NORM_EPSILON),
        positions=original.NAMES.positions.removeprefix(_INSIDE),
        classes=None,
        to_layout=to_layout,
        from_layout=from_layout,
    )


def to_layout(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our weights as the layout has them; each channel gets a third, so that their sum is what it was."""
    tensors = {
        name.removeprefix(_INSIDE): tensor
        for name, tensor in original.to_layout(weights).items()
        if name.startswith(_INSIDE)
    }
    tensors[_PROJECTION] = tensors[_PROJECTION].repeat(1, _CHANNELS, 1, 1) / _CHANNELS
    return tensors


def from_layout(tensors: Mapping[str, Tensor], grid: tuple[int, int]) -> dict[str, Tensor]:
    """Return tensors of the layout as our weights, those of the head excepted."""
    inside = dict(tensors) | {_PROJECTION: tensors[_PROJECTION].sum(1, keepdim=True)}
    return original.from_layout({f"{_INSIDE}{name}": tensor for name, tensor in inside.items()}, grid)


def _timm_repository(name: str) -> str:
    import timm  # takes seconds, and only who starts from its weights needs it

    known = timm.list_models("deit*distilled*")
    if name not in known:
        raise SonolexError(
            f"start.source: expected a file, or one of timm's {', '.join(known)}, found {name!r}; name one of these"
        )
    return str(timm.get_pretrained_cfg(name, allow_unregistered=False).hf_hub_id)  # type: ignore[union-attr]
