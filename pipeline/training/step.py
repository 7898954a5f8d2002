"""One step: a batch in parts, each forward and backward, one update of the weights.

The gradients of the parts add up, weighted by their clips, to those of the whole batch, over the parts that one process
computes in turn (`accumulate`) as over those of several processes. Batch norm sees one turn at a time.

Precision: with bfloat16 and float16 the model's arithmetic runs under torch's autocast; augmentation, the loss, gradients,
weights and their average are float32. float16 has so few exponents that gradients vanish: the loss is scaled up before the
backward pass, as far as they do not overflow (Micikevicius et al., 2018, arXiv 1710.03740); a step that overflows is left
out.

Conventions: targets (clip, class) float32, in the order of the batches' clips.
"""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.artifacts.clips import LabelKind
from pipeline.training import augmentation
from pipeline.training.averaging import WeightAverage
from pipeline.training.batches import Batch, StoredBatch
from pipeline.training.compiling import compiled
from pipeline.training.distributed import World
from pipeline.training.losses import classification_loss, smooth_labels
from pipeline.training.optimiser import build_optimiser, set_rate
from pipeline.training.settings import TrainParams

SMALLEST_SCALE = 1.0  # of a float16 loss; gradients that overflow even so are no matter of scale


class Task(NamedTuple):
    """What the clips are, and what is to be learnt of them."""

    label_kind: LabelKind
    time_axis: int  # of a batch's inputs
    log_unit: float | None  # see `augmentation.mix`


class NotFiniteError(Exception):
    """A loss, or the norm of a step's gradients, is no number."""

    def __init__(self, what: str, found: float, batch: StoredBatch | None) -> None:
        super().__init__(what)
        self.what, self.found = what, found
        self.batch = batch  # the part of the batch that it was met in; None = the whole batch


class Learner:
    """A model on its device, and everything that changes with it from step to step."""

    def __init__(self, model: nn.Module, params: TrainParams, task: Task, world: World) -> None:
        self.model, self.params, self.task, self.world = model, params, task, world
        self.optimiser = build_optimiser(model, params.optimiser, params.learning_rate)
        self.average = WeightAverage(model, params.average, params.epochs)
        self.scaler = torch.GradScaler(world.device.type, enabled=params.precision == "float16")
        classify: Callable[..., Tensor] = model.classify  # type: ignore[assignment]
        self._classify = compiled(classify) if params.compile else classify
        self.on_gradients: Callable[[], None] | None = None  # called in every step, before gradients are clipped

    def step(self, parts: Iterable[tuple[StoredBatch, Tensor]], num_clips: int, rate: float) -> tuple[float, float]:
        """Train on a batch of `num_clips` in all processes together; return its loss and the norm of its gradients.

        `parts` are this process's, with their targets. The norm of a step that overflowed in float16 is infinite.
        Raises NotFiniteError before any weight has changed.
        """
        set_rate(self.optimiser, rate)
        self.optimiser.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.world.device)
        for batch, targets in parts:
            on_device = batch.to(self.world.device)
            loss = augmented_loss(
                self.model, self._classify, self.params, on_device, targets.to(self.world.device), self.task
            )
            if not torch.isfinite(loss):
                raise NotFiniteError("loss", loss.item(), batch)
            loss = loss * (len(targets) / num_clips)  # a mean over clips, so that the parts add up to the batch's
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        self.world.add_up([total, *(p.grad for p in self.model.parameters() if p.grad is not None)])
        norm = self._update()
        self.average.after_step()
        return total.item(), norm

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


def augmented_loss(
    model: nn.Module,
    classify: Callable[..., Tensor],
    params: TrainParams,
    batch: Batch,
    targets: Tensor,
    task: Task,
) -> Tensor:
    """Return the loss of a batch after augmentation; `classify` is the model's own, or what was made of it."""
    options = params.augmentation
    inputs = augmentation.warp_time(batch.inputs, batch.mask, options, task.time_axis)
    masks_tokens = isinstance(getattr(model, "mask_token", None), int)
    if masks_tokens:
        inputs = augmentation.replace_words(inputs, model.neighbours, options.word_noise)  # type: ignore[arg-type]
        inputs = augmentation.mask_tokens(inputs, batch.mask, model.mask_token, options.frame_masks)  # type: ignore[arg-type]
    picture = model.embed(inputs)  # type: ignore[operator]
    soft = smooth_labels(targets, params.label_smoothing, task.label_kind)
    mixed = augmentation.mix(picture, batch.mask, soft, options, task.log_unit)
    frame_masks = None if masks_tokens else options.frame_masks
    picture = augmentation.mask_picture(mixed.picture, frame_masks, options.band_masks)
    picture = augmentation.add_noise(picture, options.noise)
    with _precision(params, picture.device):
        logits = classify(picture, mixed.mask)
    return classification_loss(logits.float(), mixed.targets, task.label_kind)


def _precision(params: TrainParams, device: torch.device) -> AbstractContextManager[Any]:
    if params.precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, params.precision))
