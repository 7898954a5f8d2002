"""Conformer encoder: self-attention and convolution in every block (Gulati et al., 2020, arXiv 2005.08100).

A block is half a step of feed-forward, self-attention, a convolution over neighbouring positions, and half a step of
feed-forward. Differences from the paper: position embeddings are the stem's instead of relative ones in the attention; a
layer norm instead of a batch norm follows the depthwise convolution, so that recomputing a block for activation
checkpointing has no side effects; and drop path replaces dropout.

Conventions: B batch, N position, D width; masks (B, N) are bool, True = real.
"""

from typing import Literal

import torch.nn.functional as F
from pydantic import PositiveInt, field_validator
from torch import Tensor, nn

from pipeline.models.blocks import AttentionEncoderParams, drop_path, key_mask, self_attention
from pipeline.models.parts import Encoder, Stem


class ConformerParams(AttentionEncoderParams):
    kind: Literal["conformer"]
    kernel: PositiveInt  # positions, odd

    @field_validator("kernel")
    @classmethod
    def _is_odd(cls, kernel: int) -> int:
        if kernel % 2 == 0:
            raise ValueError("expected an odd number, to keep each output centred on its input")
        return kernel


class Conformer(Encoder):
    Params = ConformerParams
    supports_class_tokens = supports_pretraining = supports_activation_checkpointing = has_attention = True

    def __init__(self, params: ConformerParams, stem: Stem) -> None:
        super().__init__(params, stem)
        self.blocks = nn.ModuleList(Block(params, rate) for rate in params.drop_path_rates)

    def forward(self, x: Tensor, mask: Tensor | None, num_wanted: int | None = None) -> tuple[Tensor, Tensor | None]:
        for block in self.blocks:
            x = self.run_block(block, x, mask)
        return x, mask


class Block(nn.Module):
    def __init__(self, params: ConformerParams, rate: float) -> None:
        super().__init__()
        width = params.width
        self.heads, self.rate = params.heads, rate
        self.feed_forward = _feed_forward(params)
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.convolution = ConvolutionModule(width, params.kernel)
        self.last_feed_forward = _feed_forward(params)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + 0.5 * self._drop(self.feed_forward(x))
        attended = self_attention(self.qkv(self.attention_norm(x)), self.heads, key_mask(mask))
        x = x + self._drop(self.proj(attended))
        x = x + self._drop(self.convolution(x, mask))
        x = x + 0.5 * self._drop(self.last_feed_forward(x))
        out: Tensor = self.norm(x)
        return out

    def _drop(self, y: Tensor) -> Tensor:
        return drop_path(y, self.rate, training=self.training)


class ConvolutionModule(nn.Module):
    """Pointwise convolution with a gated linear unit, depthwise convolution over positions, pointwise convolution."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 2 * width)
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.depthwise_norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        y = F.glu(self.expand(self.norm(x)), dim=2)
        if mask is not None:  # zero after the clip, like the border of an unpadded clip
            y = y.masked_fill(~mask[:, :, None], 0.0)
        y = self.depthwise(y.transpose(1, 2)).transpose(1, 2)
        out: Tensor = self.project(F.silu(self.depthwise_norm(y)))
        return out


def _feed_forward(params: ConformerParams) -> nn.Sequential:
    hidden = round(params.width * params.mlp_ratio)
    return nn.Sequential(
        nn.LayerNorm(params.width), nn.Linear(params.width, hidden), nn.SiLU(), nn.Linear(hidden, params.width)
    )
