"""Masked, synchronised batch norm (Ioffe and Szegedy, 2015): statistics over the real frames of all processes.

Padding would bias the statistics towards zero, so it is excluded. In data-parallel training the statistics are those of the
whole batch over all processes, and so are the running statistics. torch's SyncBatchNorm works on GPUs only, and without a
mask.

Conventions: B batch, C channel, T frame, F feature, R row = one real value of each channel.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class BatchNorm(nn.BatchNorm2d):
    # Permutations from (B, C, T, F) to (B, T, F, C), and back; a subclass with another time axis overrides them.
    CHANNEL_LAST, CHANNEL_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)

    def forward(self, h: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise (B, C, T, F) channel by channel; where the mask (B, T) is False, in training, the output is zero."""
        if not self.training:
            return super().forward(h)
        shared = dist.is_initialized() and dist.get_world_size() > 1
        if not shared and _has_one_row(h, mask):
            return self._normalise_by_running(h)
        if mask is None and not shared:
            return super().forward(h)
        frames = h.permute(self.CHANNEL_LAST)  # (B, T, F, C)
        real = frames if mask is None else frames[mask]  # (..., F, C)
        # Flattened to rows: for a permuted view, torch 2.11 returns wrong gradients (LOG.md, 2026-11-21).
        rows = real.reshape(-1, real.shape[-1])  # (R, C)
        normalised = (
            self._normalise_together(rows.float()).to(h.dtype) if shared else super().forward(rows[:, :, None, None])
        )
        normalised = normalised.reshape(real.shape)
        if mask is not None:
            normalised = torch.zeros_like(frames, dtype=normalised.dtype).index_put(
                mask.nonzero(as_tuple=True), normalised
            )
        return normalised.permute(self.CHANNEL_FIRST)

    def _normalise_by_running(self, h: Tensor) -> Tensor:
        """Normalise by the running statistics, as in evaluation: a single row has no deviation."""
        return F.batch_norm(h, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)

    def _normalise_together(self, rows: Tensor) -> Tensor:
        """Normalise (R, C) by mean and standard deviation of the rows of all processes; gradients flow through both."""
        total = torch.tensor([float(len(rows))], device=rows.device)
        dist.all_reduce(total)
        mean: Tensor = all_reduce(rows.sum(0)) / total  # type: ignore[no-untyped-call]
        centred = rows - mean
        variance: Tensor = all_reduce(centred.square().sum(0)) / total  # type: ignore[no-untyped-call]
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * total / (total - 1), self.momentum)
        return centred * torch.rsqrt(variance + self.eps) * self.weight + self.bias


def _has_one_row(h: Tensor, mask: Tensor | None) -> bool:
    """Return whether (B, C, T, F) has fewer than two real rows; each clip has one, so that more clips need no count."""
    if h.shape[0] * h.shape[3] > 1:  # a count of the mask would wait for the device
        return False
    return (h.shape[2] if mask is None else int(mask.sum())) < 2
