"""A stack of strided convolutions over a (frame, feature) picture, which padding does not reach.

Conventions: B batch, T frame, F feature, C channel.
"""

from typing import Annotated

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from pipeline.models.batch_norm import BatchNorm
from pipeline.params import Params


class StackParams(Params):
    channels: list[PositiveInt]  # of each layer
    strides: list[Annotated[tuple[PositiveInt, PositiveInt], Field(strict=False)]]  # (frames, bands) of each layer
    kernel: PositiveInt  # odd, both ways

    @model_validator(mode="after")
    def _layers_agree(self) -> "StackParams":
        if not self.channels or len(self.channels) != len(self.strides):
            raise ValueError(f"channels {self.channels} and strides {self.strides} must name the same number of layers")
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel {self.kernel} must be odd, to keep each output centred on its input")
        return self


class ConvolutionStack(nn.Module):
    """Convolution, batch norm and GELU, layer after layer; `channels` and `bands` are those of what comes out."""

    def __init__(self, params: StackParams, num_features: int) -> None:
        super().__init__()
        self.strides = [stride for stride, _ in params.strides]
        self.convolutions, self.norms = nn.ModuleList(), nn.ModuleList()
        self.channels, self.bands = 1, num_features
        for out, (stride, stride_bands) in zip(params.channels, params.strides, strict=True):
            layer = nn.Conv2d(self.channels, out, params.kernel, (stride, stride_bands), params.kernel // 2, bias=False)
            # Channels last: the convolutions of oneDNN on a CPU and of cuDNN run in this layout without copies.
            self.convolutions.append(layer.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
            self.norms.append(BatchNorm(out))
            self.channels, self.bands = out, -(-self.bands // stride_bands)

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Map (B, T, F) and a mask (B, T) to maps (B, C, T', F') and their mask (B, T'); behind a clip's end they are 0."""
        h = x[:, None].contiguous(memory_format=torch.channels_last)
        if mask is not None:
            h = h * mask[:, None, :, None].to(h.dtype)
        for convolution, norm, stride in zip(self.convolutions, self.norms, self.strides, strict=True):
            h = convolution(h)
            if mask is not None:
                mask = mask[:, ::stride]  # an output is real when the frame at its centre is
            h = nn.functional.gelu(norm(h, mask))
            if mask is not None:  # what follows the clip is zero again, as the border of an unpadded clip is
                h = h * mask[:, None, :, None].to(h.dtype)
        return h, mask
