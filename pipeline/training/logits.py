"""Prediction of logits by a network, without augmentation."""

import torch
from torch import Tensor, nn

from pipeline.training.batches import Batches
from pipeline.training.distributed import ALONE, DistributedContext


@torch.no_grad()
def predict_logits(model: nn.Module, batches: Batches, batch_size: int, context: DistributedContext = ALONE) -> Tensor:
    """Return logits (clip, class), on the CPU, in the order of the batches' clips.

    Several processes share the batches, and each gets all logits, identical to those of a single process.
    """
    model.eval()
    rows, logits = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, 0)]
    for batch in batches.in_order(batch_size, context.rank, context.size):
        inputs, mask, own, _ = batch.to(context.device)
        rows.append(own)
        logits.append(model(inputs, mask).cpu())
    return context.assemble(torch.cat(rows), torch.cat(logits[1:] or logits), len(batches))
