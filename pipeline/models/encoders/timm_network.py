"""Encoder that is a convolutional network of timm, with the feature map as an image: of one channel, as in PSLA, or several.

PSLA: Gong, Chung and Glass, 2021, arXiv 2102.01243. `pipeline/models/encoders/timm_layers.py` masks padding in the network's
layers. It imports timm, which takes longer than torch, so params are checked without it.

Conventions: B batch, T frame, F feature, S time step (T / 32), C channel.
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, field_validator
from torch import Tensor

from pipeline.models.parts import Encoder, EncoderParams, Stem, as_image

NETWORKS = (
    *(f"{family}_b{size}" for family in ("efficientnet", "tf_efficientnet") for size in range(8)),
    "mobilenetv2_050",
    "mobilenetv2_100",
    "mobilenetv3_small_050",
    "mobilenetv3_small_100",
    "mobilenetv3_large_100",
    *(f"tf_efficientnetv2_{size}" for size in ("b0", "b1", "b2", "b3", "s", "m", "l")),
    *(f"efficientnetv2_rw_{size}" for size in "tsm"),
    *(f"resnet{depth}" for depth in (18, 26, 34, 50, 101, 152)),
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    *(f"convnext_{size}" for size in ("atto", "femto", "pico", "nano", "tiny", "small", "base", "large")),
    *(f"convnextv2_{size}" for size in ("atto", "femto", "pico", "nano", "tiny", "base", "large")),
)
_PATCHED = "convnext"  # family whose strided convolutions have no padding: maps are of whole patches
# Beginnings of timm's names of networks with self-attention, whose positions are those of images of one size.
_ATTENTION = (
    *(
        "beit",
        "cait",
        "coat",
        "convit",
        "crossvit",
        "davit",
        "deit",
        "eva",
        "flexivit",
        "gcvit",
        "hiera",
        "levit",
        "maxvit",
    ),
    *("maxxvit", "mvitv2", "nest", "pit_", "pvt", "samvit", "swin", "tnt", "twins", "vit", "volo", "xcit"),
)

_STAGES = 5  # each halves the feature map


class TimmParams(EncoderParams):
    kind: Literal["timm"]
    network: str  # name in timm
    drop_path: float = Field(ge=0, lt=1)  # of the last block; earlier ones less, in proportion to depth
    # Of the batch norms; None = as timm has them. The momentum is the weight of a new batch in the running statistics.
    norm_epsilon: PositiveFloat | None
    norm_momentum: Annotated[float, Field(gt=0, le=1)] | None

    @property
    def time_stride(self) -> int:
        return int(2**_STAGES)

    @field_validator("network")
    @classmethod
    def _is_known(cls, network: str) -> str:
        if network.startswith(_ATTENTION):
            raise ValueError(
                f"expected a convolutional network, found {network}, which has self-attention over images of one size; "
                "take encoder.kind transformer with stem.kind patches, which reads ImageNet weights too "
                f"(recipes/ast_base384.yaml), or one of {', '.join(NETWORKS)}"
            )
        if network not in NETWORKS:
            raise ValueError(
                f"expected one of the networks whose layers are known to leave padding out: {', '.join(NETWORKS)}"
            )
        return network

    @property
    def is_patched(self) -> bool:
        """Whether the network reads the feature map in whole patches, as ConvNeXt does."""
        return self.network.startswith(_PATCHED)


class TimmNetwork(Encoder):
    """Maps a feature map (B, T, F) to time steps (B, S, C): the network's maps, averaged over frequency."""

    Params = TimmParams
    keeps_positions = supports_patchout = False
    has_feature_maps = True

    def __init__(self, params: TimmParams, stem: Stem) -> None:
        from pipeline.models.encoders.timm_layers import BatchNorms, Padding, build_network

        super().__init__(params, stem)
        self.padding, self.num_channels = Padding(), stem.num_channels
        norms = BatchNorms(params.norm_epsilon, params.norm_momentum)
        self.network, self.num_features = build_network(
            params.network, params.drop_path, norms, self.padding, stem.num_channels
        )
        self.num_rows, self.stride = 1, stem.stride * params.time_stride
        self.map_strides = self.stride, 2**_STAGES
        self.is_patched = params.is_patched
        if params.is_patched:
            self.centre = stem.centre + stem.stride * (params.time_stride - 1) / 2

    def forward(self, x: Tensor, mask: Tensor | None, num_wanted: int | None = None) -> tuple[Tensor, Tensor | None]:
        return self.positions_of(*self.feature_maps(x, mask))

    def feature_maps(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        image = as_image(x, self.num_channels).transpose(2, 3)
        if self.is_patched:
            image, mask = _whole_patches(image, mask)
        self.padding.set(mask)
        image = self.padding.clear(image)
        maps = self.network(image.contiguous(memory_format=torch.channels_last))
        return maps.transpose(2, 3), self.padding.mask(maps.shape[3])

    def positions_of(self, maps: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return maps.mean(3).transpose(1, 2), mask

    def real_time_steps(self, real: Tensor) -> Tensor:
        for _ in range(_STAGES):
            real = real[:, ::2]
        return real


def _whole_patches(image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return (B, C, F, T) and its mask (B, T) filled up with zeros to multiples of the strides of time and frequency."""
    size = 2**_STAGES
    bands, frames = -image.shape[2] % size, -image.shape[3] % size
    if frames and mask is None:
        mask = image.new_ones((len(image), image.shape[3]), dtype=torch.bool)
    if frames and mask is not None:
        mask = F.pad(mask, (0, frames), value=False)
    return F.pad(image, (0, frames, 0, bands)), mask
