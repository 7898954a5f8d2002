"""Patchout: random positions are dropped before the encoder in training, for less computation and as augmentation.

After Koutini et al., 2021, "Efficient Training of Audio Transformers with Patchout" (arXiv 2110.05069), unstructured:
positions are drawn per clip. They are dropped after the stem, which adds position embeddings, and before class tokens are
prepended. The remaining positions keep their order.

Conventions: B batch, N position, D width; the mask (B, N) is True where a position is real.
"""

import torch
from torch import Tensor


def drop_positions(positions: Tensor, mask: Tensor | None, fraction: float) -> tuple[Tensor, Tensor | None]:
    """Drop this fraction, rounded down, of each clip's real positions (B, N, D), and padding that becomes unnecessary."""
    batch, num_positions, width = positions.shape
    order = torch.rand(batch, num_positions).to(positions.device)
    if mask is not None:
        order = order.masked_fill(~mask, 2.0)  # padding comes last
    kept = order.argsort(dim=1)[:, : num_positions - int(num_positions * fraction)]
    real: Tensor | None = None
    if mask is not None:
        lengths = mask.sum(1, keepdim=True)
        real = torch.arange(kept.shape[1], device=mask.device) < lengths - (lengths * fraction).long()
        kept = kept.where(real, num_positions)
    kept = kept.sort(dim=1).values.clamp(max=num_positions - 1)  # padding comes last
    return positions.gather(1, kept[:, :, None].expand(-1, -1, width)), real
