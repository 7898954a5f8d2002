"""The one transformer encoder behind every stem, which is what makes patches and tokens comparable.

Pre-norm blocks (Xiong et al., 2020, "On Layer Normalization in the Transformer Architecture") with
scaled_dot_product_attention; drop path after Huang et al., 2016, "Deep Networks with Stochastic Depth".

Conventions: B batch, N position, D width. `mask` is (B, N) bool, True = real; None says that all are, which lets the
fused attention kernels run without one.
"""

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.params import Params

NORM_EPSILON = 1e-6  # of every layer norm, as in ViT and DeiT; published weights may ask for their own


class EncoderParams(Params):
    width: PositiveInt
    depth: PositiveInt  # blocks
    heads: PositiveInt
    mlp_ratio: PositiveFloat  # hidden units of a block's perceptron over width
    drop_path: float = Field(ge=0, lt=1)  # of the last block; earlier ones less, in proportion to depth

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "EncoderParams":
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be a multiple of 2 * heads = {2 * self.heads}")
        return self


class Encoder(nn.Module):
    """Turn (B, N, D) positions into (B, N, D) contextual ones.

    With `recompute` the backward pass computes each block again from its input, instead of keeping all activations (Chen et
    al., 2016, "Training Deep Nets with Sublinear Memory Cost"): the same gradients in less memory and more time.
    """

    def __init__(self, params: EncoderParams, norm_epsilon: float = NORM_EPSILON) -> None:
        super().__init__()
        rates = [params.drop_path * (i + 1) / params.depth for i in range(params.depth)]
        self.blocks = nn.ModuleList(Block(params, rate, norm_epsilon) for rate in rates)
        self.norm = nn.LayerNorm(params.width, eps=norm_epsilon)
        self.recompute = False

    def forward(self, x: Tensor, mask: Tensor | None, count: int | None = None) -> Tensor:
        """With a `count`, return (B, count, D): the first positions alone, the same as without.

        The last block then computes little else than keys and values of the others, about a twelfth of AST's work less.
        """
        keys = None if mask is None else mask[:, None, None, :]  # every query sees the real positions only
        again = self.recompute and torch.is_grad_enabled()
        for block in self.blocks:
            wanted = count if block is self.blocks[-1] else None
            x = checkpoint(block, x, keys, wanted, use_reentrant=False) if again else block(x, keys, wanted)
        out: Tensor = self.norm(x)
        return out


class NoEncoder(nn.Module):
    """Leaves positions without a context."""

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return x


class Block(nn.Module):
    def __init__(self, params: EncoderParams, drop_path: float, norm_epsilon: float = NORM_EPSILON) -> None:
        super().__init__()
        width, hidden = params.width, round(params.width * params.mlp_ratio)
        self.heads, self.drop_path = params.heads, drop_path
        self.norm1 = nn.LayerNorm(width, eps=norm_epsilon)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=norm_epsilon)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor, keys: Tensor | None, count: int | None) -> Tensor:
        x = x[:, :count] + self._drop(self._attend(self.norm1(x), keys, count))
        return x + self._drop(self.fc2(F.gelu(self.fc1(self.norm2(x)))))

    def _attend(self, x: Tensor, keys: Tensor | None, count: int | None) -> Tensor:
        batch, positions, width = x.shape
        q, k, v = self.qkv(x).view(batch, positions, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q[:, :, :count], k, v, attn_mask=keys)
        out: Tensor = self.proj(y.transpose(1, 2).reshape(batch, -1, width))
        return out

    def _drop(self, y: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0:
            return y
        # One draw a clip, not an element: cheap, whereas dropout on a CPU costs more than the products beside it.
        keep = 1 - self.drop_path
        return y * (torch.rand(len(y), 1, 1, device=y.device) < keep).to(y.dtype) / keep
