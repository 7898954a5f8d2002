"""Self-attention, drop path and common settings of attention encoders.

Conventions: B batch, N position, Q query, D width.
"""

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from pipeline.models.parts import EncoderParams


class AttentionEncoderParams(EncoderParams):
    """Section of an encoder made of blocks with self-attention."""

    width: PositiveInt
    depth: PositiveInt  # blocks
    heads: PositiveInt
    mlp_ratio: PositiveFloat  # hidden units of the MLP of a block, as a multiple of width
    drop_path: float = Field(ge=0, lt=1)  # of the last block; earlier ones less, in proportion to depth

    @property
    def input_width(self) -> int:
        return self.width

    @property
    def drop_path_rates(self) -> list[float]:
        """Drop-path rate of each block."""
        return [self.drop_path * (i + 1) / self.depth for i in range(self.depth)]

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "AttentionEncoderParams":
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be a multiple of 2 * heads = {2 * self.heads}")
        return self


def key_mask(mask: Tensor | None) -> Tensor | None:
    """Return the mask (B, N) in the form of `self_attention`: queries attend to real positions only."""
    return None if mask is None else mask[:, None, None, :]


def self_attention(qkv: Tensor, heads: int, keys: Tensor | None, num_queries: int | None = None) -> Tensor:
    """Return scaled dot-product attention (B, Q, D) of queries, keys and values (B, N, 3 * D)."""
    batch, positions, _ = qkv.shape
    q, k, v = qkv.view(batch, positions, 3, heads, -1).permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(q[:, :, :num_queries], k, v, attn_mask=keys)
    return y.transpose(1, 2).reshape(batch, -1, qkv.shape[2] // 3)


def drop_path(y: Tensor, rate: float, *, training: bool) -> Tensor:
    """Drop a residual branch (B, N, D) of some clips (Huang et al., 2016, "Deep Networks with Stochastic Depth").

    One draw per clip, not per element: dropout on a CPU costs more than the matrix products.
    """
    if not training or rate == 0:
        return y
    keep = 1 - rate
    return y * (torch.rand(len(y), 1, 1, device=y.device) < keep).to(y.dtype) / keep
