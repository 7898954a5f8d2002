"""The process group of a training or prediction run, and the device of each process; a single process pays nothing.

Every process holds the whole model and takes its part of every batch; the gradients of the parts are added up, so that all
take the same step, the step that one process would have taken with the whole batch, to the rounding: batch norms see all
parts (pipeline/models/batch_norm.py). What differs from one process is noise: each draws its own random numbers for
augmentation and dropout, and mixes clips of its own part.

The gradients travel in one message a step, after the backward pass, and not through DistributedDataParallel. That one hides
the transfer behind the backward pass, but it weights all parts alike whatever their size, wants the model called as a whole
where training calls its halves (`embed`, `classify`) with mix-up between them, and regroups its messages after the first
step, so that a resumed run of three or more processes would differ in the last bits from an undisturbed one.

Device: `cuda:LOCAL_RANK` where torch finds a GPU, the CPU elsewhere; `CUDA_VISIBLE_DEVICES=` (empty) chooses the CPU.
Messages go through NCCL for what lies on a GPU, through gloo for the rest.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.errors import SonolexError
from pipeline.execution import launch

log = logging.getLogger(__name__)

# How long a process waits for another before it gives up; longer than any wait that is no fault.
PATIENCE = timedelta(minutes=10)


@dataclass(frozen=True)
class DistributedContext:
    """The place of one process among those of its run."""

    rank: int
    size: int
    device: torch.device
    launcher: int = 0  # process id of torchrun

    @property
    def is_main_process(self) -> bool:
        """Say whether this process is the one that writes, logs and draws progress."""
        return self.rank == 0

    def local_rows(self, rows: Tensor) -> Tensor:
        """Return this process's part of the rows of a batch; all parts together are the batch, and none overlap."""
        return torch.tensor_split(rows, self.size)[self.rank]

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, in one message. All must be float32 on one device."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        totals = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, total in zip(tensors, totals, strict=True):
            tensor.copy_(total.view(tensor.shape))

    def gather(self, value: int) -> list[int]:
        """Return this number of every process, in order of rank."""
        values = torch.zeros(self.size)
        values[self.rank] = value
        self.all_reduce_sum([values])
        return [int(number) for number in values]

    def assemble(self, rows: Tensor, values: Tensor, count: int) -> Tensor:
        """Return an array (row, value) float32 of `count` rows, on every process, from the rows that each one holds.

        `rows` (held,) says where those of `values` (held, value) belong. Every row must be held by exactly one process.
        """
        width = max(self.gather(values.shape[1]))  # a process without rows does not know it
        whole = torch.zeros(count, 1 + width)
        if len(rows):
            whole.index_add_(0, rows, torch.cat([torch.ones(len(rows), 1), values], dim=1))
        self.all_reduce_sum([whole])
        holders = whole[:, 0]
        if not (holders == 1).all():
            row = int((holders != 1).nonzero()[0])
            raise RuntimeError(f"row {row}: expected from one process, found from {int(holders[row])}")
        return whole[:, 1:]

    def require_launcher(self) -> None:
        """Stop when torchrun has been killed: nobody waits for the result, and a second run may have been started."""
        if self.size > 1 and os.getppid() != self.launcher:
            raise SonolexError(
                f"training process {self.rank} of {self.size}: expected torchrun (process {self.launcher}) to be running, "
                "found it gone; run the stage again, it goes on from its last checkpoint"
            )


ALONE = DistributedContext(0, 1, torch.device("cpu"))


@contextmanager
def init_distributed() -> Iterator[DistributedContext]:
    """Find this process's place and device, and meet the other processes if there are any. The leader alone keeps its log.

    On an error nobody is waited for: this process ends, and torchrun ends the others.
    """
    size, rank = launch.num_processes(), launch.rank()
    device = _device()
    if size == 1:
        yield DistributedContext(0, 1, device)
        return
    if rank:
        logging.getLogger().setLevel(logging.WARNING)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    log.info("%d processes train together, this one on %s", size, device)
    yield DistributedContext(rank, size, device, launcher=os.getppid())
    dist.destroy_process_group()


def _device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if launch.local_rank() >= torch.cuda.device_count():
        raise SonolexError(
            f"training process {launch.rank()}: expected a GPU for each process on this machine, found "
            f"{torch.cuda.device_count()}; lower launch.train_processes (or torchrun's --nproc-per-node), or take the CPU "
            "by setting CUDA_VISIBLE_DEVICES to nothing"
        )
    torch.cuda.set_device(launch.local_rank())
    return torch.device("cuda", launch.local_rank())
