"""Training step: forward and backward pass of each micro-batch, then one update of the weights.

The gradients of micro-batches, weighted by their clips, add up to those of the whole batch, both over the micro-batches of
one process (`accumulate`) and over processes. Batch norm sees one micro-batch at a time.

Precision: with bfloat16 and float16 the model's arithmetic runs under torch's autocast; augmentation, the loss, gradients,
weights and their average are float32. In float16 small gradients underflow: the loss is scaled up before the backward pass
(Micikevicius et al., 2018, arXiv 1710.03740), and a step that overflows is skipped.

Conventions: targets (clip, class) float32, in the order of the batches' clips.
"""

import ctypes
import logging
import math
import platform
from collections.abc import Callable, Iterable
from typing import Any, Generic, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from pipeline.models.neural_model import NeuralModel
from pipeline.training.averaging import WeightAverage
from pipeline.training.batches import Batch, StoredBatch
from pipeline.training.distributed import DistributedContext
from pipeline.training.optimiser import build_optimiser, set_rate
from pipeline.training.settings import TrainParams

log = logging.getLogger(__name__)

SMALLEST_SCALE = 1.0  # of a float16 loss; gradients that overflow at this scale are a fault

# From glibc's malloc.h: the size from which a block is mapped separately, and the free memory above which it is returned.
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
LARGEST_KEPT = 1 << 30  # bytes of a block

P = ParamSpec("P")
R = TypeVar("R")
M = TypeVar("M", bound=NeuralModel)
M_contra = TypeVar("M_contra", bound=NeuralModel, contravariant=True)

Forward = Callable[..., Any]  # part of a model's forward pass, perhaps compiled or in half precision


class Task(Protocol[M_contra]):
    """Interface of training tasks: the loss of a batch."""

    @property
    def section(self) -> str:
        """Return the section of params.yaml with learning rate and batch size, for messages."""

    @property
    def measures(self) -> tuple[str, ...]:
        """Return the names of a batch's measures other than the loss."""

    def forward(self, model: M_contra) -> Forward:
        """Return the part of the model that may be compiled and run in half precision."""

    def loss(self, model: M_contra, forward: Forward, batch: Batch, targets: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the loss of a batch, and its measures: means over clips, so that micro-batches add up."""


class NotFiniteError(Exception):
    """Raised where a loss, or the norm of a step's gradients, is not finite."""

    def __init__(self, what: str, found: float, batch: StoredBatch | None) -> None:
        super().__init__(what)
        self.what, self.found = what, found
        self.batch = batch  # the micro-batch in which it occurred; None = the whole batch


class Learner(Generic[M]):
    """A model on its device with its optimiser, weight average and gradient scaler."""

    def __init__(self, model: M, params: TrainParams, task: Task[M], context: DistributedContext) -> None:
        self.model, self.params, self.task, self.context = model, params, task, context
        self.optimiser = build_optimiser(
            model, params.optimiser, params.learning_rate, embedding_rate=model.embedding_rate, rates=params.rates
        )
        self.average = WeightAverage(model, params.average, params.epochs)
        self.scaler = torch.GradScaler(context.device.type, enabled=params.precision == "float16")
        self.measured = [0.0 for _ in task.measures]  # of the last step's batch
        forward = task.forward(model)
        self._forward = _in_precision(compiled(forward) if params.compile else forward, params, context.device)
        self.on_gradients: Callable[[], None] | None = None  # called in every step, before gradients are clipped

    def step(
        self, micro_batches: Iterable[tuple[StoredBatch, Tensor]], num_clips: int, rate: float
    ) -> tuple[float, float]:
        """Train on a batch of `num_clips` in all processes together; return its loss and the norm of its gradients.

        `micro_batches` are this process's, with their targets. The norm of a step that overflowed in float16 is infinite.
        Raises NotFiniteError before any weight has changed.
        """
        set_rate(self.optimiser, rate)
        self.optimiser.zero_grad(set_to_none=True)
        totals = torch.zeros(1 + len(self.measured), device=self.context.device)
        for batch, targets in micro_batches:
            on_device = batch.to(self.context.device)
            loss, measures = self.task.loss(self.model, self._forward, on_device, targets.to(self.context.device))
            if not torch.isfinite(loss):
                raise NotFiniteError("loss", loss.item(), batch)
            share = batch.num_clips / num_clips  # of means over clips, so that micro-batches add up to the batch
            self.scaler.scale(loss * share).backward()  # type: ignore[no-untyped-call]
            totals += torch.stack([loss, *measures]).detach() * share
        self.context.all_reduce_sum([totals, *(p.grad for p in self.model.parameters() if p.grad is not None)])
        norm = self._update()
        self.average.after_step()
        total, *self.measured = totals.tolist()
        return total, norm

    def _update(self) -> float:
        self.scaler.unscale_(self.optimiser)
        if self.on_gradients is not None:
            self.on_gradients()
        largest = self.params.gradient_clip or math.inf
        norm: float = nn.utils.clip_grad_norm_(self.model.parameters(), largest, foreach=True).item()
        overflows = self.scaler.is_enabled() and self.scaler.get_scale() > SMALLEST_SCALE
        if not math.isfinite(norm) and not overflows:
            raise NotFiniteError("norm of the gradients", norm, None)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        return norm


def _in_precision(function: Callable[P, R], params: TrainParams, device: torch.device) -> Callable[P, R]:
    if params.precision == "float32":
        return function
    dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}[params.precision]

    def call(*arguments: P.args, **options: P.kwargs) -> R:
        with torch.autocast(device.type, dtype=dtype):
            return function(*arguments, **options)

    return call


def keep_freed_memory() -> bool:
    """Make the C library keep freed memory; return whether it does, which only glibc on Linux can.

    glibc returns blocks of some megabytes to the system as soon as they are free. A step on a CPU frees and allocates
    hundreds of them, the activations of every layer, as pages that the system must find and clear each time. Measured on
    tiny224 with 16 clips: 50,000 page faults per step, 5 to 10 % of its time.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return bool(library.mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)) and bool(library.mallopt(M_TRIM_THRESHOLD, -1))


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Return the function, compiled at its first call; after a failure to compile, the plain one, with a warning."""
    fast: Callable[P, R] | None = torch.compile(function)

    def call(*arguments: P.args, **options: P.kwargs) -> R:
        nonlocal fast
        if fast is not None:
            try:
                return fast(*arguments, **options)
            except TorchDynamoException as error:
                reason = " ".join(str(error).split())[:300]
                log.warning(
                    "train.compile: expected torch.compile to work, found %s: %s; training goes on without it, more slowly "
                    "(it needs a C++ compiler, and on GPUs Triton)", type(error).__name__, reason,
                )  # fmt: skip
                fast = None
        return function(*arguments, **options)

    return call
