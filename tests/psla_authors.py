"""The network of PSLA's authors after their paper, as an oracle: EfficientNet (Tan and Le, 2019) and attention over time.

Modules have the names of efficientnet_pytorch 0.7.0, which the authors took, and of their head, so that `state_dict()` is
laid out as their published files. Convolutions pad alike on both sides, and norms have an epsilon of 1e-3. LOG.md
(2026-11-26) has the comparison with that package.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

# Of EfficientNet's baseline: repeats, kernel, stride, expansion, channels.
STAGES = [(1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192)]
STAGES += [(1, 3, 1, 6, 320)]
SCALES = {0: (1.0, 1.0), 2: (1.1, 1.2)}  # of channels and of repeats, by size


def _channels(number: float) -> int:
    rounded = max(8, int(number + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * number else rounded


def _convolution(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, *, groups: int = 1, bias: bool = False
) -> Any:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=bias)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expands, self.keeps = expansion > 1, stride == 1 and inputs == outputs
        if self.expands:
            self._expand_conv, self._bn0 = _convolution(inputs, inner), _norm(inner)
        self._depthwise_conv, self._bn1 = _convolution(inner, inner, kernel, stride, groups=inner), _norm(inner)
        squeezed = max(1, inputs // 4)
        self._se_reduce, self._se_expand = (
            _convolution(inner, squeezed, bias=True),
            _convolution(squeezed, inner, bias=True),
        )
        self._project_conv, self._bn2 = _convolution(inner, outputs), _norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.silu(self._bn0(self._expand_conv(x))) if self.expands else x
        h = nn.functional.silu(self._bn1(self._depthwise_conv(h)))
        gates = self._se_expand(nn.functional.silu(self._se_reduce(h.mean((2, 3), keepdim=True))))
        h = self._bn2(self._project_conv(h * gates.sigmoid()))
        return h + x if self.keeps else h


class _Encoder(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        wide, deep = SCALES[size]
        last = _channels(32 * wide)
        self._conv_stem, self._bn0 = _convolution(1, last, 3, 2), _norm(last)
        blocks = []
        for repeats, kernel, stride, expansion, channels in STAGES:
            for number in range(math.ceil(repeats * deep)):
                outputs = _channels(channels * wide)
                blocks.append(_Block(last, outputs, kernel, 1 if number else stride, expansion))
                last = outputs
        self._blocks = nn.ModuleList(blocks)
        self.channels = _channels(1280 * wide)
        self._conv_head, self._bn1 = _convolution(last, self.channels), _norm(self.channels)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.silu(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return nn.functional.silu(self._bn1(self._conv_head(x)))


class _Attention(nn.Module):
    def __init__(self, channels: int, num_classes: int, heads: int) -> None:
        super().__init__()
        pairs = [[_convolution(channels, num_classes, bias=True) for _ in range(heads)] for _ in range(2)]
        self.att, self.cla = (nn.ModuleList(own) if heads > 1 else own[0] for own in pairs)
        if heads > 1:
            self.head_weight = nn.Parameter(torch.full((heads,), 1 / heads))

    def forward(self, x: Tensor) -> Tensor:
        """Return the probability (B, K) of maps (B, C, T, 1)."""
        several = isinstance(self.att, nn.ModuleList)
        total = torch.zeros(())
        for head in range(len(self.att) if several else 1):  # type: ignore[arg-type]
            attend, score = (part[head] if several else part for part in (self.att, self.cla))  # type: ignore[index]
            attention = attend(x)[..., 0].sigmoid().clamp(1e-7, 1 - 1e-7)
            average = (attention / attention.sum(2, keepdim=True) * score(x)[..., 0].sigmoid()).sum(2)
            total = total + average * (self.head_weight[head] if several else 1)
        return total


class Psla(nn.Module):
    """Maps frames (B, T, mel) to probabilities (B, K)."""

    def __init__(self, size: int, num_classes: int, heads: int = 4) -> None:
        super().__init__()
        self.effnet = _Encoder(size)
        self.attention = _Attention(self.effnet.channels, num_classes, heads)

    def forward(self, frames: Tensor) -> Tensor:
        maps = nn.functional.avg_pool2d(self.effnet(frames[:, None].transpose(2, 3)), (4, 1))
        return self.attention(maps.transpose(2, 3))


def make_psla(size: int = 0, num_classes: int = 5, heads: int = 4) -> Psla:
    """Return a network whose norms have seen data, so that activations are as large as in a trained one."""
    torch.manual_seed(5)
    network = Psla(size, num_classes, heads).train()
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.8, 1.2)
        nn.init.normal_(norm.bias, std=0.2)
        norm.momentum = 1.0
    with torch.no_grad():
        network(torch.randn(4, 160, 128))
    for norm in norms:
        norm.momentum = 0.01
    for name, parameter in network.attention.named_parameters():
        if name.endswith("weight") and parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.1)
    if heads > 1:
        nn.init.uniform_(network.attention.head_weight, 0.2, 0.3)
    return network.eval()
