"""Transformer encoder of pre-norm blocks (Xiong et al., 2020, "On Layer Normalization in the Transformer Architecture").

Conventions: B batch, N position, D width; masks (B, N) are bool, True = real.
"""

from typing import Literal

import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from pipeline.models.blocks import drop_path, key_mask, self_attention
from pipeline.models.parts import Encoder, EncoderParams, Stem

NORM_EPSILON = 1e-6  # of every layer norm, as in ViT and DeiT; published weights may bring their own


class TransformerParams(EncoderParams):
    kind: Literal["transformer"]
    width: PositiveInt
    depth: PositiveInt  # blocks
    heads: PositiveInt
    mlp_ratio: PositiveFloat  # hidden units of a block's perceptron over width
    drop_path: float = Field(ge=0, lt=1)  # of the last block; earlier ones less, in proportion to depth

    @property
    def input_width(self) -> int:
        return self.width

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "TransformerParams":
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be a multiple of 2 * heads = {2 * self.heads}")
        return self


class Transformer(Encoder):
    Params = TransformerParams
    supports_class_tokens = supports_pretraining = supports_activation_checkpointing = has_attention = True

    def __init__(self, params: TransformerParams, stem: Stem) -> None:
        super().__init__(params, stem)
        rates = [params.drop_path * (i + 1) / params.depth for i in range(params.depth)]
        self.blocks = nn.ModuleList(Block(params, rate) for rate in rates)
        self.norm = nn.LayerNorm(params.width, eps=NORM_EPSILON)

    def forward(self, x: Tensor, mask: Tensor | None, num_wanted: int | None = None) -> tuple[Tensor, Tensor | None]:
        """With `num_wanted` the last block computes little else than keys and values of the others.

        That is about a twelfth of AST's work less, for the same output.
        """
        keys = key_mask(mask)
        for block in self.blocks:
            x = self.run_block(block, x, keys, num_wanted if block is self.blocks[-1] else None)
        return self.norm(x), None if mask is None else mask[:, :num_wanted]


class Block(nn.Module):
    def __init__(self, params: TransformerParams, rate: float) -> None:
        super().__init__()
        width, hidden = params.width, round(params.width * params.mlp_ratio)
        self.heads, self.rate = params.heads, rate
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor, keys: Tensor | None, num_wanted: int | None) -> Tensor:
        y = self.proj(self_attention(self.qkv(self.norm1(x)), self.heads, keys, num_wanted))
        x = x[:, :num_wanted] + drop_path(y, self.rate, training=self.training)
        y = self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return x + drop_path(y, self.rate, training=self.training)
