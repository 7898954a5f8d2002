"""Stack of masked, strided convolutions over a feature map, in 2D or over time alone.

Conventions: B batch, T frame, F feature, C channel.
"""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from pipeline.models.batch_norm import BatchNorm
from pipeline.models.parts import as_image
from pipeline.params import Params


class StackParams(Params):
    channels: list[PositiveInt]  # of each layer
    strides: list[Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)]]  # (frames, bands) of each layer
    kernel: PositiveInt  # odd, along both axes

    @model_validator(mode="after")
    def _layers_agree(self) -> "StackParams":
        _check_layers(self.channels, self.strides, self.kernel)
        return self


class TimeStackParams(Params):
    channels: list[PositiveInt]  # of each layer; a frame's features are the input channels
    strides: list[PositiveInt]  # frames, of each layer
    kernel: PositiveInt  # frames, odd

    @model_validator(mode="after")
    def _layers_agree(self) -> "TimeStackParams":
        _check_layers(self.channels, self.strides, self.kernel)
        return self


def _check_layers(channels: Sequence[int], strides: Sequence[object], kernel: int) -> None:
    if not channels or len(channels) != len(strides):
        raise ValueError(f"channels {channels} and strides {strides} must name the same number of layers")
    if kernel % 2 == 0:
        raise ValueError(f"kernel {kernel} must be odd, to keep each output centred on its input")


class ConvolutionStack(nn.Module):
    """Convolution, batch norm and GELU, layer after layer; `channels` and `bands` are those of the output."""

    def __init__(self, params: StackParams | TimeStackParams, num_features: int, num_channels: int = 1) -> None:
        """Build for feature maps (B, T, F) of `num_features`, in `num_channels` one after another."""
        super().__init__()
        self.num_channels = num_channels
        self.over_time = isinstance(params, TimeStackParams)
        if isinstance(params, TimeStackParams):  # one band, with features as channels
            self.channels, self.bands = num_features, 1
            strides, kernel = [(stride, 1) for stride in params.strides], (params.kernel, 1)
        else:
            self.channels, self.bands = num_channels, num_features // num_channels
            strides, kernel = params.strides, (params.kernel, params.kernel)
        self.strides = [stride for stride, _ in strides]
        self.convolutions, self.norms = nn.ModuleList(), nn.ModuleList()
        padding = (kernel[0] // 2, kernel[1] // 2)
        for out, (stride, stride_bands) in zip(params.channels, strides, strict=True):
            layer = nn.Conv2d(self.channels, out, kernel, (stride, stride_bands), padding, bias=False)
            # Channels last: the convolutions of oneDNN on a CPU and of cuDNN run in this layout without copies.
            self.convolutions.append(layer.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
            self.norms.append(BatchNorm(out))
            self.channels, self.bands = out, -(-self.bands // stride_bands)

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Map (B, T, F) and a mask (B, T) to maps (B, C, T', F') and their mask (B, T'); after a clip's end they are 0."""
        h = x.transpose(1, 2)[..., None] if self.over_time else as_image(x, self.num_channels)
        h = h.contiguous(memory_format=torch.channels_last)
        if mask is not None:
            h = h * mask[:, None, :, None].to(h.dtype)
        for convolution, norm, stride in zip(self.convolutions, self.norms, self.strides, strict=True):
            h = convolution(h)
            if mask is not None:
                mask = mask[:, ::stride]  # an output is real when the frame at its centre is
            h = nn.functional.gelu(norm(h, mask))
            if mask is not None:  # zero after the clip, like the border of an unpadded clip
                h = h * mask[:, None, :, None].to(h.dtype)
        return h, mask
