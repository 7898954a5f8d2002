"""Data-parallel training and prediction: the process group, its collectives, and the device of each process.

Every process holds the whole model and computes a slice of every batch; gradients are summed over processes, so that all
take the same step as one process with the whole batch would, up to rounding: batch norm uses the statistics of all slices
(pipeline/models/batch_norm.py). Random numbers differ: each process draws its own for augmentation and dropout, and mixes
clips within its slice.

Gradients are reduced in one message per step, after the backward pass, and not by DistributedDataParallel. That overlaps
communication with the backward pass, but weights all slices equally whatever their size, requires the model to be called as
a whole where training calls `embed` and `classify` with mix-up between them, and regroups its messages after the first step,
so that a resumed run of three or more processes would differ in the last bits from an uninterrupted one.

Device: `cuda:LOCAL_RANK` where torch finds a GPU, the CPU elsewhere; `CUDA_VISIBLE_DEVICES=` (empty) chooses the CPU. The
backend is NCCL for tensors on GPUs, gloo for others. On GPUs torch's deterministic kernels are used.
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

# Timeout of collectives; longer than any wait in a run without faults.
PATIENCE = timedelta(minutes=10)


@dataclass(frozen=True)
class DistributedContext:
    """Rank, number of processes and device of this process, with the collectives of its run."""

    rank: int
    size: int
    device: torch.device
    launcher: int = 0  # process id of torchrun

    @property
    def is_main_process(self) -> bool:
        """Return whether this is the process that writes, logs and shows progress."""
        return self.rank == 0

    def local_rows(self, rows: Tensor) -> Tensor:
        """Return this process's slice of the rows of a batch; the slices of all processes partition it."""
        return torch.tensor_split(rows, self.size)[self.rank]

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, in one message; all must be float32 on one device."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        totals = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, total in zip(tensors, totals, strict=True):
            tensor.copy_(total.view(tensor.shape))

    def gather(self, value: int) -> list[int]:
        """Return the values of all processes, in order of rank."""
        values = torch.zeros(self.size)
        values[self.rank] = value
        self.all_reduce_sum([values])
        return [int(number) for number in values]

    def assemble(self, rows: Tensor, values: Tensor, count: int) -> Tensor:
        """Return an array (row, value) float32 of `count` rows, on every process, from the rows that each holds.

        `rows` (held,) are the positions of the rows of `values` (held, value). Every row must be held by exactly one
        process.
        """
        width = max(self.gather(values.shape[1]))  # unknown in a process without rows
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
        """Raise SonolexError when torchrun has been killed, since a second run may have been started meanwhile."""
        if self.size > 1 and os.getppid() != self.launcher:
            raise SonolexError(
                f"training process {self.rank} of {self.size}: expected torchrun (process {self.launcher}) to be running, "
                "found it gone; run the stage again, which resumes from the last checkpoint"
            )


ALONE = DistributedContext(0, 1, torch.device("cpu"))


@contextmanager
def init_distributed() -> Iterator[DistributedContext]:
    """Set up this process's context and join the process group, if there is one; only the main process logs.

    On an error this process ends without waiting for others, and torchrun ends them.
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
            f"{torch.cuda.device_count()}; lower launch.train_processes (or torchrun's --nproc-per-node), or use the CPU "
            "by setting CUDA_VISIBLE_DEVICES to an empty string"
        )
    _choose_deterministic_kernels()
    torch.cuda.set_device(launch.local_rank())
    return torch.device("cuda", launch.local_rank())


def _choose_deterministic_kernels() -> None:
    """Have CUDA add in a fixed order, so that the same run gives the same weights; where it cannot, torch warns.

    cuBLAS reads its workspace from the environment when it starts, so this stands before the first product.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
