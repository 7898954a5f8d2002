"""Backbones: convolutional networks of timm that read a spectrogram as a picture of one channel, and never its padding.

The networks are timm's own in names, order of weights and first values, so that weights trained on ImageNet fit. Layers
through which padding would act are replaced: batch norm takes its statistics from real frames and leaves zeros behind a
clip's end, which is all that the next convolution sees there; squeeze-and-excitation averages over real frames. TensorFlow's
"same" convolutions, which pad by the picture's size, pad as they do at multiples of the stride.

An RGB network reads a grey picture when its first convolution is summed over the colours.

Conventions: B batch, T frame, F feature (mel band), C channel; maps are (B, C, F, T), frequency as the picture's height.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import timm
import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import Tensor, nn

from pipeline.artifacts.files import file_digest
from pipeline.errors import SonolexError
from pipeline.models.batch_norm import BatchNorm
from pipeline.models.layouts.files import hub_file, read_tensors
from pipeline.paths import input_path


class Padding:
    """Which positions along time are real, at each resolution of a network, found by how many there are.

    It keeps the last batch's masks: activation checkpointing computes layers anew during the backward pass.
    """

    def __init__(self) -> None:
        self._masks: dict[int, Tensor] = {}

    def set(self, mask: Tensor | None) -> None:
        """Take the mask (B, T) of the picture that comes next."""
        self._masks = {}
        while mask is not None and mask.shape[1] not in self._masks:
            self._masks[mask.shape[1]] = mask
            mask = mask[:, ::2]  # an output of stride 2 is real when the one at its centre is

    def mask(self, positions: int) -> Tensor | None:
        """Return the mask (B, positions), or None where nothing is padded."""
        return self._masks[positions] if self._masks else None

    def clear(self, maps: Tensor) -> Tensor:
        """Return the maps with zeros behind each clip's end."""
        mask = self.mask(maps.shape[3])
        return maps if mask is None else maps * mask[:, None, None, :].to(maps.dtype)


class Start(NamedTuple):
    """Weights to start from, opened, and not yet checked against the network that they are for."""

    where: str  # file, for messages
    digest: str  # of the file
    tensors: dict[str, Tensor]

    @property
    def facts(self) -> dict[str, Any]:
        """What a trained model keeps of its start."""
        return {"digest": self.digest}


class Backbone(nn.Module):
    """Map a picture (B, T, F) and its mask (B, T) to positions (B, T / 32, C) and theirs: maps, averaged over frequency."""

    network: Any  # timm's, whose attributes have no types

    def __init__(self, name: str, drop_path: float) -> None:
        super().__init__()
        self.padding = Padding()
        self.network = timm.create_model(name, in_chans=1, num_classes=0, global_pool="", drop_path_rate=drop_path)
        self.num_features = int(self.network.head_hidden_size)
        _leave_padding_out(self.network, self.padding)
        self.network = self.network.to(memory_format=torch.channels_last)

    def forward(self, picture: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        self.padding.set(mask)
        image = self.padding.clear(picture.transpose(1, 2)[:, None])
        maps = self.network(image.contiguous(memory_format=torch.channels_last))
        return maps.mean(2).transpose(1, 2), self.padding.mask(maps.shape[3])

    def start_from(self, start: Start) -> None:
        """Load weights of this network for pictures of three channels, or of one; those of its classifier are left out."""
        facts: dict[str, Any] = self.network.pretrained_cfg
        tensors = {
            name: values for name, values in start.tensors.items() if not name.startswith(facts["classifier"] + ".")
        }
        first = tensors.get(name := facts["first_conv"] + ".weight")
        if first is not None and first.ndim == 4 and first.shape[1] == 3:
            tensors[name] = first.sum(1, keepdim=True)
        _require_shapes(self.network.state_dict(), tensors, start.where)
        self.network.load_state_dict(tensors, strict=False)


def read_start(source: str, digest: str | None) -> Start:
    """Open weights of a network of timm: a file, or a name of timm's as tf_efficientnet_b2.aa_in1k. Raises SonolexError."""
    path = input_path(source)
    if not path.exists():
        path = hub_file(_timm_repository(source), ["model.safetensors"], start=source)
    found = file_digest(path)
    if digest not in (None, found):
        raise SonolexError(
            f"start.digest: {path}: expected {digest}, found {found}; put the file back, or the digest found into "
            "params.yaml if it is meant, and its models are trained again"
        )
    return Start(str(path), found, read_tensors(path))


def _timm_repository(name: str) -> str:
    known = timm.list_pretrained(name.partition(".")[0] + "*")
    if name not in known:
        raise SonolexError(
            f"start.source: expected a file, or a name of timm's weights{_example(known)}, found {name!r}; name one of these"
        )
    return str(timm.get_pretrained_cfg(name, allow_unregistered=False).hf_hub_id)  # type: ignore[union-attr]


def _example(known: list[str]) -> str:
    return f" ({', '.join(known[:8])})" if known else " such as efficientnet_b2.ra_in1k"


def _require_shapes(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], where: str) -> None:
    """Raise SonolexError unless the tensors are the network's, by name and shape; old files lack counters of batches."""
    wrong = [f"{name} missing" for name in expected if name not in found and not name.endswith("num_batches_tracked")]
    wrong += [f"{name} unknown" for name in found if name not in expected]
    wrong += [
        f"{name} of shape {tuple(values.shape)} for {tuple(expected[name].shape)}"
        for name, values in found.items()
        if name in expected and values.shape != expected[name].shape
    ]
    if wrong:
        raise SonolexError(
            f"start: {where}: expected the {len(expected)} tensors of the backbone, found {len(wrong)} that differ "
            f"({', '.join(wrong[:3])}); set backbone to the network that the weights are of, or take other weights"
        )


class _BatchNorm(BatchNorm):
    """A batch norm of timm's, and the activation that some carry, over the real frames of maps (B, C, F, T)."""

    CHANNEL_LAST, CHANNEL_FIRST = (0, 3, 2, 1), (0, 3, 2, 1)  # to (B, T, F, C), and back

    def __init__(self, norm: nn.BatchNorm2d, padding: Padding) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, device="meta")
        self.load_state_dict(norm.state_dict(), assign=True)
        self.act = getattr(norm, "act", nn.Identity())
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
        if mask is not None:  # padding is zero, and only makes the sum's divisor too large
            means = means * (h.shape[3] / mask.sum(1))[:, None, None, None].to(h.dtype)
        gates: Tensor = self.gate(self.conv_expand(self.act1(self.conv_reduce(means))))
        return h * gates


class _SameConvolution(nn.Conv2d):
    """TensorFlow's "same" convolution, with the padding before the first row or column that even sizes get."""

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


def _leave_padding_out(network: nn.Module, padding: Padding) -> None:
    for name, layer in network.named_children():
        if isinstance(layer, nn.BatchNorm2d):
            setattr(network, name, _BatchNorm(layer, padding))
        elif isinstance(layer, SqueezeExcite):
            setattr(network, name, _SqueezeExcite(layer, padding))
        elif isinstance(layer, Conv2dSame):
            setattr(network, name, _SameConvolution(layer))
        else:
            _leave_padding_out(layer, padding)
