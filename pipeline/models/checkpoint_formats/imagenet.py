"""Checkpoint format of timm's distilled DeiT (Touvron et al., 2021): ImageNet weights, from which AST is initialised.

The names are those below `v.` in the AST authors' files. The patch projection of three colour channels is summed over them
(AST, section 2.2). The heads are for other classes and are dropped. Norms have timm's epsilon, 1e-6.
"""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from pipeline.artifacts.files import file_digest
from pipeline.errors import SonolexError
from pipeline.models.checkpoint_formats.ast_checkpoint import AstCheckpoint, AstCheckpointParams
from pipeline.models.checkpoint_formats.files import hub_file, read_tensors
from pipeline.models.checkpoint_formats.original import NAMES, OriginalCheckpoint
from pipeline.paths import input_path

_CHANNELS = 3
_INSIDE = "v."
_PROJECTION = NAMES.projection.removeprefix(_INSIDE)
_HEADS = ("head.", "head_dist.")


class ImageNetParams(AstCheckpointParams):
    kind: Literal["imagenet"]  # `source` is a model of timm, such as deit_base_distilled_patch16_384, or a file

    def require_source(self) -> None:
        if not input_path(self.source).exists():
            _timm_repository(self.source)


class ImageNetCheckpoint(AstCheckpoint):
    """ImageNet weights, with a position table for square images and without statistics of log-mel frames."""

    Params = ImageNetParams
    signature = NAMES.class_token.removeprefix(_INSIDE)
    positions = NAMES.positions.removeprefix(_INSIDE)
    classes = None

    def __init__(self, params: ImageNetParams) -> None:
        path = input_path(params.source)
        if not path.exists():
            path = hub_file(_timm_repository(params.source), ["model.safetensors"], source=params.source)
        self.where, self.digest = str(path), file_digest(path)
        self.tensors = {name: tensor for name, tensor in read_tensors(path).items() if not name.startswith(_HEADS)}
        self.check(params)

    @staticmethod
    def to_format(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return our weights in the format; each channel gets a third, so that the sum over channels is kept."""
        tensors = {
            name.removeprefix(_INSIDE): tensor
            for name, tensor in OriginalCheckpoint.to_format(weights).items()
            if name.startswith(_INSIDE)
        }
        tensors[_PROJECTION] = tensors[_PROJECTION].repeat(1, _CHANNELS, 1, 1) / _CHANNELS
        return tensors

    @staticmethod
    def from_format(tensors: Mapping[str, Tensor], grid: tuple[int, int]) -> dict[str, Tensor]:
        """Return tensors of the format as our weights, without the head."""
        inside = dict(tensors) | {_PROJECTION: tensors[_PROJECTION].sum(1, keepdim=True)}
        return OriginalCheckpoint.from_format({f"{_INSIDE}{name}": tensor for name, tensor in inside.items()}, grid)


def _timm_repository(name: str) -> str:
    import timm  # here: takes seconds, and only its weights need it

    known = timm.list_models("deit*distilled*")
    if name not in known:
        raise SonolexError(
            f"pretrained.source: expected a file, or one of timm's {', '.join(known)}, found {name!r}; name one of these"
        )
    return str(timm.get_pretrained_cfg(name, allow_unregistered=False).hf_hub_id)  # type: ignore[union-attr]
