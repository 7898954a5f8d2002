"""Masked layers for timm's convolutional networks, so that padding has no effect.

The networks are timm's in names, order of weights and initial values, so that weights trained on ImageNet fit. Layers that
padding would affect are replaced: batch norm takes its statistics from real frames and sets the output after a clip's end to
zero, the input of the next convolution there; squeeze-and-excitation averages over real frames. TensorFlow's "same"
convolutions, whose padding depends on the image's size, pad as for multiples of the stride. In ConvNeXt, whose layer norms
and linear layers have biases, every convolution over several positions, and global response norm, first set what is after a
clip's end to zero.

Conventions: B batch, T frame, F feature (mel band), C channel; maps are (B, C, F, T), frequency as the image's height.
"""

from typing import Any, NamedTuple

import timm
import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.grn import GlobalResponseNorm
from timm.layers.norm_act import BatchNormAct2d
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import Tensor, nn

from pipeline.models.batch_norm import BatchNorm


class Padding:
    """Masks of real positions along time at each resolution of a network, looked up by length.

    The last batch's masks are kept, since activation checkpointing computes layers again in the backward pass.
    """

    def __init__(self) -> None:
        self._masks: dict[int, Tensor] = {}

    def set(self, mask: Tensor | None) -> None:
        """Set the mask (B, T) of the next feature map."""
        self._masks = {}
        while mask is not None and mask.shape[1] not in self._masks:
            self._masks[mask.shape[1]] = mask
            mask = mask[:, ::2]  # an output of stride 2 is real when the input at its centre is

    def mask(self, positions: int) -> Tensor | None:
        """Return the mask (B, positions), or None where nothing is padded."""
        return self._masks[positions] if self._masks else None

    def clear(self, maps: Tensor) -> Tensor:
        """Return the maps with zeros after each clip's end."""
        mask = self.mask(maps.shape[3])
        return maps if mask is None else maps * mask[:, None, None, :].to(maps.dtype)


class BatchNorms(NamedTuple):
    """Settings of all batch norms of a network; None = as timm has them."""

    epsilon: float | None
    momentum: float | None

    def apply_to(self, network: nn.Module) -> None:
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eps = layer.eps if self.epsilon is None else self.epsilon
                layer.momentum = layer.momentum if self.momentum is None else self.momentum


def build_network(
    name: str, drop_path: float, norms: BatchNorms, padding: Padding, num_channels: int = 1
) -> tuple[nn.Module, int]:
    """Build a network with random weights that maps (B, `num_channels`, F, T) to maps (B, C, F / 32, T / 32), and C."""
    network: Any = timm.create_model(
        name, in_chans=num_channels, num_classes=0, global_pool="", drop_path_rate=drop_path
    )
    norms.apply_to(network)
    _leave_padding_out(network, padding, clears=not any(isinstance(m, nn.BatchNorm2d) for m in network.modules()))
    return network.to(memory_format=torch.channels_last), int(network.head_hidden_size)


class _BatchNorm(BatchNorm):
    """timm's batch norm, with its activation if it has one, over the real frames of maps (B, C, F, T)."""

    CHANNEL_LAST, CHANNEL_FIRST = (0, 3, 2, 1), (0, 3, 2, 1)  # to (B, T, F, C), and back

    def __init__(self, norm: nn.BatchNorm2d, padding: Padding) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, device="meta")
        self.load_state_dict(norm.state_dict(), assign=True)
        self.act = norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity()
        self.padding = padding

    def forward(self, h: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.padding.clear(self.act(super().forward(h, self.padding.mask(h.shape[3]))))


class _SqueezeExcite(nn.Module):
    """Squeeze-and-excitation (Hu et al., 2018) by the mean over real frames."""

    def __init__(self, block: SqueezeExcite, padding: Padding) -> None:
        super().__init__()
        self.conv_reduce, self.act1 = block.conv_reduce, block.act1
        self.conv_expand, self.gate = block.conv_expand, block.gate
        self.padding = padding

    def forward(self, h: Tensor) -> Tensor:
        means, mask = h.mean((2, 3), keepdim=True), self.padding.mask(h.shape[3])
        if mask is not None:  # padding is zero and affects only the divisor of the mean
            lengths = mask.sum(1).to(torch.promote_types(h.dtype, torch.float32))
            means = means * (h.shape[3] / lengths)[:, None, None, None].to(h.dtype)
        gates: Tensor = self.gate(self.conv_expand(self.act1(self.conv_reduce(means))))
        return h * gates


class _SameConvolution(nn.Conv2d):
    """TensorFlow's "same" convolution, with the padding before the first row or column of even sizes."""

    def __init__(self, convolution: Conv2dSame) -> None:
        kernel: Any = convolution.kernel_size
        stride: Any = convolution.stride
        groups, has_bias = convolution.groups, convolution.bias is not None
        channels = convolution.in_channels, convolution.out_channels
        super().__init__(*channels, kernel, stride, groups=groups, bias=has_bias, device="meta")
        self.load_state_dict(convolution.state_dict(), assign=True)

    def forward(self, h: Tensor) -> Tensor:
        pads: list[int] = []
        for size, kernel, stride in zip(h.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            before = (kernel - stride) // 2
            pads += [before, (-(-size // stride) - 1) * stride + kernel - size - before]
        return super().forward(nn.functional.pad(h, pads))


class _Clear(nn.Module):
    """Sets what is after a clip's end to zero, as after a pooling whose window reaches over the end."""

    def __init__(self, padding: Padding) -> None:
        super().__init__()
        self.clear = padding.clear

    def forward(self, h: Tensor) -> Tensor:
        return self.clear(h)


class _ClearedConvolution(nn.Conv2d):
    """Convolution that reads zeros after a clip's end, whatever is there."""

    def __init__(self, convolution: nn.Conv2d, padding: Padding) -> None:
        (kernel, _), (stride, _) = convolution.kernel_size, convolution.stride  # of squares
        padding_size = kernel // 2 if convolution.padding != (0, 0) else 0
        groups, has_bias = convolution.groups, convolution.bias is not None
        channels = convolution.in_channels, convolution.out_channels
        super().__init__(*channels, kernel, stride, padding_size, groups=groups, bias=has_bias, device="meta")
        self.load_state_dict(convolution.state_dict(), assign=True)
        self.clear = padding.clear

    def forward(self, h: Tensor) -> Tensor:
        return super().forward(self.clear(h))


class _ResponseNorm(nn.Module):
    """Global response norm (Woo et al., 2023, arXiv 2301.00808) by the energy of real frames."""

    def __init__(self, norm: GlobalResponseNorm, padding: Padding) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.channels_last = norm.channel_dim == -1  # maps are then (B, F, T, C)
        self.eps, self.clear = norm.eps, padding.clear

    def forward(self, h: Tensor) -> Tensor:
        maps = h.permute(0, 3, 1, 2) if self.channels_last else h
        maps = self.clear(maps)
        energy: Tensor = maps.norm(p=2, dim=(2, 3), keepdim=True)
        weight, bias = self.weight[:, None, None], self.bias[:, None, None]
        maps = maps + bias + weight * maps * (energy / (energy.mean(1, keepdim=True) + self.eps))
        return maps.permute(0, 2, 3, 1) if self.channels_last else maps


def _leave_padding_out(network: nn.Module, padding: Padding, *, clears: bool) -> None:
    """Replace the layers that padding would affect; `clears`: convolutions clear their input, which has no batch norms."""
    for name, layer in network.named_children():
        if isinstance(layer, nn.BatchNorm2d):
            setattr(network, name, _BatchNorm(layer, padding))
        elif isinstance(layer, SqueezeExcite):
            setattr(network, name, _SqueezeExcite(layer, padding))
        elif isinstance(layer, Conv2dSame):
            setattr(network, name, _SameConvolution(layer))
        elif isinstance(layer, nn.MaxPool2d):
            setattr(network, name, nn.Sequential(layer, _Clear(padding)))
        elif isinstance(layer, GlobalResponseNorm):
            setattr(network, name, _ResponseNorm(layer, padding))
        elif clears and isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1):
            setattr(network, name, _ClearedConvolution(layer, padding))
        else:
            _leave_padding_out(layer, padding, clears=clears)
