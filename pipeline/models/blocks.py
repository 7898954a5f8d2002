"""What blocks of several encoders compute: self-attention, and drop path.

Conventions: B batch, N position, Q query, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def key_mask(mask: Tensor | None) -> Tensor | None:
    """Return the mask (B, N) as `self_attention` takes it: every query attends to the real positions alone."""
    return None if mask is None else mask[:, None, None, :]


def self_attention(qkv: Tensor, heads: int, keys: Tensor | None, num_queries: int | None = None) -> Tensor:
    """Return scaled dot-product attention (B, Q, D) of queries, keys and values (B, N, 3 * D)."""
    batch, positions, _ = qkv.shape
    q, k, v = qkv.view(batch, positions, 3, heads, -1).permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(q[:, :, :num_queries], k, v, attn_mask=keys)
    return y.transpose(1, 2).reshape(batch, -1, qkv.shape[2] // 3)


def drop_path(y: Tensor, rate: float, *, training: bool) -> Tensor:
    """Drop a residual branch (B, N, D) of some clips (Huang et al., 2016, "Deep Networks with Stochastic Depth").

    One draw a clip, not an element: cheap, whereas dropout on a CPU costs more than the products beside it.
    """
    if not training or rate == 0:
        return y
    keep = 1 - rate
    return y * (torch.rand(len(y), 1, 1, device=y.device) < keep).to(y.dtype) / keep
