"""Token augmentation: replacement of tokens by near ones, and spans that become the mask token.

Conventions: tokens (B, codebook, T) int64; `mask` (B, T) is True for real tokens, None = all.
"""

import torch
from torch import Tensor

from pipeline.training.augmentation.masks import clip_lengths, draw_spans
from pipeline.training.augmentation.settings import MasksParams


def replace_tokens(tokens: Tensor, neighbours: Tensor, probability: float) -> Tensor:
    """Replace tokens, with a probability, by draws from `neighbours` (codebook, token, neighbour).

    This imitates the noise of k-means itself, by which a frame near the border of two tokens may get either. Special tokens
    are their own neighbours.
    """
    if probability == 0:
        return tokens
    device = tokens.device
    choice = torch.randint(0, neighbours.shape[2], tokens.shape).to(device)
    near = neighbours[torch.arange(len(neighbours), device=device)[:, None], tokens, choice]
    return torch.where(torch.rand(tokens.shape).to(device) < probability, near, tokens)


def mask_tokens(tokens: Tensor, mask: Tensor | None, mask_token: int, masks: MasksParams) -> Tensor:
    """Replace spans of real tokens by the mask token."""
    hidden = draw_spans(clip_lengths(mask, len(tokens), tokens.shape[2]), tokens.shape[2], masks).to(tokens.device)
    if mask is not None:
        hidden &= mask
    return tokens.masked_fill(hidden[:, None, :], mask_token)
