"""Show the encoder a part of the positions in training: less to compute, and each clip in many forms.

After Koutini et al., 2021, "Efficient Training of Audio Transformers with Patchout" (arXiv 2110.05069), unstructured: each
clip loses positions of its own. They are lost behind the stem, which has told each where it stands, and before class
tokens come in front.

Conventions: B batch, N position, D width; the mask (B, N) is True where a position is real.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def drop_positions(positions: Tensor, mask: Tensor | None, part: float) -> tuple[Tensor, Tensor | None]:
    """Drop this part, rounded down, of each clip's real positions (B, N, D), and of all the padding that this frees."""
    batch, num_positions, width = positions.shape
    order = torch.rand(batch, num_positions).to(positions.device)
    if mask is not None:
        order = order.masked_fill(~mask, 2.0)  # padding comes last
    kept = order.argsort(dim=1)[:, : num_positions - int(num_positions * part)]
    shown = positions.gather(1, kept[:, :, None].expand(-1, -1, width))
    if mask is None:
        return shown, None
    lengths = mask.sum(1, keepdim=True)
    real = lengths - (lengths * part).long()
    return shown, torch.arange(kept.shape[1], device=mask.device) < real


@contextmanager
def patchout(stem: nn.Module, part: float) -> Iterator[None]:
    """Drop positions behind a stem while it trains, until the context ends."""

    def drop(module: nn.Module, _inputs: Any, output: tuple[Tensor, Tensor | None]) -> Any:
        return drop_positions(*output, part) if module.training else None

    if not part:
        yield
        return
    handle = stem.register_forward_hook(drop)
    try:
        yield
    finally:
        handle.remove()
