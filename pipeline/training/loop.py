"""The training loop: one schedule, decided beforehand, over the training clips of a fold.

Without validation clips (the K-fold default) every epoch runs and the averaged weights at the end are the model: nothing is
chosen. With them, and `early_stop_patience` above 0, the epoch of lowest validation loss is kept.

Conventions: targets (clip, class) float32, in the order of the batches' clips.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from pipeline.artifacts.clips import LabelKind
from pipeline.errors import SonolexError
from pipeline.params import Params
from pipeline.seeding import named_seed
from pipeline.training import augmentation, checkpoints, sampling
from pipeline.training.augmentation import AugmentationParams
from pipeline.training.averaging import WeightAverage
from pipeline.training.batches import Batch, Batches
from pipeline.training.distributed import ALONE, World
from pipeline.training.losses import classification_loss, smooth_labels
from pipeline.training.sampling import Sampling
from pipeline.training.schedules import warmup_cosine

log = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 20.0  # between two checkpoints: what a kill may cost


class TrainParams(Params):
    epochs: PositiveInt
    sampling: Sampling  # of an epoch's clips: each once, or balanced by class with replacement
    batch_size: PositiveInt  # clips, over all processes together
    learning_rate: PositiveFloat = Field(le=1)  # at the peak
    weight_decay: NonNegativeFloat  # on matrices only; not on norms, biases, embeddings and class tokens
    betas: tuple[float, float] = Field(strict=False)  # of AdamW
    warmup: float = Field(ge=0, le=1)  # part of all steps
    gradient_clip: PositiveFloat  # largest norm
    label_smoothing: float = Field(ge=0, lt=1)
    average_decay: float = Field(ge=0, lt=1)  # of the averaged weights, a step; 0 takes the last weights
    early_stop_patience: NonNegativeInt  # epochs without a better validation loss; 0 = never stop
    augmentation: AugmentationParams


class Examples(NamedTuple):
    batches: Batches
    targets: Tensor  # (clip, class)
    clip_ids: list[str]


class Trained(NamedTuple):
    """What a run leaves, besides the model's weights."""

    history: list[dict[str, float]]  # one row an epoch
    clips_seen: int
    seconds: float


def train(
    model: nn.Module,
    params: TrainParams,
    examples: Examples,
    validation: Examples | None,
    *,
    label_kind: LabelKind,
    time_axis: int,
    seed: int,
    on_epoch: Callable[[dict[str, float]], None],
    checkpoint: Path,
    world: World = ALONE,
) -> Trained:
    """Train `model` in place; it ends with the averaged (or best) weights. Resumes from `checkpoint` if there is one.

    In a `world` of several processes each calls this with the same arguments, the model on its device, and ends with the
    same weights; the leader alone writes checkpoints.

    `on_epoch` is called once for every epoch, those before a resume included, with: loss, learning_rate,
    gradient_norm, clips_per_second, and validation_loss when there are validation clips.
    """
    if params.early_stop_patience and validation is None:
        raise SonolexError(
            "train.early_stop_patience: expected 0 without validation clips, found "
            f"{params.early_stop_patience}; set split.validation_fraction above 0, or the patience to 0"
        )
    _require_a_clip_each(params, examples, world)
    started = time.perf_counter()
    optimiser = _optimiser(model, params)
    average = WeightAverage(model, params.average_decay)
    progress = checkpoints.Progress(optimiser, average, {}, {"epoch": 0, "history": [], "seconds": 0.0})
    resumed = checkpoints.load_checkpoint(checkpoint, model, progress)
    if resumed:
        progress.facts.update(resumed)
        log.info("resuming after epoch %d of %d", resumed["epoch"], params.epochs)
    epochs = world.gather(progress.facts["epoch"]) if world.size > 1 else []
    if len(set(epochs)) > 1:
        raise SonolexError(
            f"{checkpoint}: expected every process to resume after the same epoch, found {epochs} by rank; the processes "
            "need one folder .sonolex/checkpoints in common"
        )
    history: list[dict[str, float]] = progress.facts["history"]
    for row in history:
        on_epoch(row)
    before, saved = progress.facts["seconds"], time.perf_counter()

    bar = _progress_bar(params.epochs, progress.facts["epoch"], len(examples.clip_ids))
    with bar if world.leads else nullcontext(lambda row: None) as advance:
        while progress.facts["epoch"] < params.epochs and not _exhausted(history, params):
            world.require_launcher()
            epoch = progress.facts["epoch"]
            row = _run_epoch(model, params, examples, label_kind, time_axis, seed, epoch, optimiser, average, world)
            if validation:
                row["validation_loss"] = _validate(model, average, validation, label_kind, params.batch_size, world)
                if params.early_stop_patience and row["validation_loss"] <= min(
                    r["validation_loss"] for r in [*history, row]
                ):
                    progress.best.update({name: t.clone() for name, t in average.values.items()})
            history.append(row)
            on_epoch(row)
            advance(row)
            progress.facts["epoch"] = epoch + 1
            progress.facts["seconds"] = before + time.perf_counter() - started
            if world.leads and time.perf_counter() - saved > CHECKPOINT_SECONDS:
                checkpoints.save_checkpoint(checkpoint, model, progress)
                saved = time.perf_counter()

    average.values.update(progress.best)
    average.swap()
    if world.leads:
        checkpoint.unlink(missing_ok=True)
    seen = len(history) * len(examples.clip_ids)
    return Trained(history, seen, before + time.perf_counter() - started)


def _run_epoch(
    model: nn.Module,
    params: TrainParams,
    examples: Examples,
    label_kind: LabelKind,
    time_axis: int,
    seed: int,
    epoch: int,
    optimiser: torch.optim.Optimizer,
    average: WeightAverage,
    world: World,
) -> dict[str, float]:
    """Run one epoch; all its random numbers follow from (seed, epoch, rank), so a resumed run draws the same ones."""
    torch.manual_seed(named_seed(seed, "epoch", epoch))
    order = sampling.draw_rows(examples.targets, params.sampling)  # the same for all processes; what follows is not
    if world.size > 1:
        torch.manual_seed(named_seed(seed, "epoch", epoch, "rank", world.rank))
    model.train()
    started = time.perf_counter()
    num_clips = len(examples.clip_ids)
    steps = math.ceil(num_clips / params.batch_size)
    losses, norms = [], []
    for index, rows_of_all in enumerate(torch.tensor_split(order, steps)):
        rows = world.part(rows_of_all)
        step = epoch * steps + index
        rate = params.learning_rate * warmup_cosine(step, params.epochs * steps, params.warmup)
        for group in optimiser.param_groups:
            group["lr"] = rate * group["factor"]
        batch, targets = examples.batches.take(rows.tolist()).to(world.device), examples.targets[rows].to(world.device)
        loss = _augmented_loss(model, params, batch, targets, label_kind, time_axis)
        if not torch.isfinite(loss):
            clips = ", ".join(examples.clip_ids[row] for row in rows.tolist())
            raise SonolexError(
                f"train: step {step} (epoch {epoch + 1}): expected a finite loss, found {loss.item()}; lower "
                f"train.learning_rate (now {params.learning_rate}) or look at the batch's clips: {clips}"
            )
        optimiser.zero_grad(set_to_none=True)
        loss = loss * (len(rows) / len(rows_of_all))  # a mean over clips, so that the parts add up to the batch's
        loss.backward()  # type: ignore[no-untyped-call]
        loss = loss.detach()
        world.add_up([loss, *(p.grad for p in model.parameters() if p.grad is not None)])
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), params.gradient_clip, foreach=True).item())
        optimiser.step()
        average.update()
        losses.append(loss.item())
    return {
        "loss": sum(losses) / steps,
        "learning_rate": rate,
        "gradient_norm": sum(norms) / steps,
        "clips_per_second": num_clips / (time.perf_counter() - started),
    }


def _augmented_loss(
    model: nn.Module, params: TrainParams, batch: Batch, targets: Tensor, label_kind: LabelKind, time_axis: int
) -> Tensor:
    options = params.augmentation
    inputs = augmentation.warp_time(batch.inputs, batch.mask, options, time_axis)
    masks_tokens = isinstance(getattr(model, "mask_token", None), int)
    if masks_tokens:
        inputs = augmentation.replace_words(inputs, model.neighbours, options.word_noise)  # type: ignore[arg-type]
        inputs = augmentation.mask_tokens(inputs, batch.mask, model.mask_token, options.frame_masks)  # type: ignore[arg-type]
    picture = model.embed(inputs)  # type: ignore[operator]
    mixed = augmentation.mix(picture, batch.mask, smooth_labels(targets, params.label_smoothing, label_kind), options)
    frame_masks = None if masks_tokens else options.frame_masks
    picture = augmentation.mask_picture(mixed.picture, frame_masks, options.band_masks)
    return classification_loss(model.classify(picture, mixed.mask), mixed.targets, label_kind)  # type: ignore[operator]


@torch.no_grad()
def _validate(
    model: nn.Module,
    average: WeightAverage,
    validation: Examples,
    label_kind: LabelKind,
    batch_size: int,
    world: World,
) -> float:
    average.swap()
    logits = predict_logits(model, validation.batches, batch_size, world)
    average.swap()
    return classification_loss(logits, validation.targets, label_kind).item()


@torch.no_grad()
def predict_logits(model: nn.Module, batches: Batches, batch_size: int, world: World = ALONE) -> Tensor:
    """Return logits (clip, class), on the CPU, in the order of the batches' clips, without augmentation.

    Several processes take turns by whole batches, and each gets all the logits: the very ones of a process alone.
    """
    model.eval()
    rows, logits = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, 0)]
    for batch in batches.in_order(batch_size, world.rank, world.size):
        inputs, mask, own = batch.to(world.device)
        rows.append(own)
        logits.append(model(inputs, mask).cpu())
    return world.assemble(torch.cat(rows), torch.cat(logits[1:] or logits), len(batches))


def _optimiser(model: nn.Module, params: TrainParams) -> torch.optim.Optimizer:
    tables = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    bare = {id(p) for name, p in model.named_parameters() if name.split(".")[-1] not in ("weight", "bias")}
    decayed = [p for p in model.parameters() if p.ndim > 1 and id(p) not in tables | bare]
    embeddings = [p for p in model.parameters() if id(p) in tables]
    chosen = {id(p) for p in [*decayed, *embeddings]}
    plain = [p for p in model.parameters() if id(p) not in chosen]
    groups = [
        {"params": decayed, "weight_decay": params.weight_decay, "factor": 1.0},
        {"params": plain, "weight_decay": 0.0, "factor": 1.0},
        {"params": embeddings, "weight_decay": 0.0, "factor": getattr(model, "embedding_rate", 1.0)},
    ]
    return torch.optim.AdamW(groups, lr=params.learning_rate, betas=params.betas, fused=True)


def _require_a_clip_each(params: TrainParams, examples: Examples, world: World) -> None:
    num_clips = len(examples.clip_ids)
    smallest = num_clips // math.ceil(num_clips / params.batch_size)  # of the batches, which differ by one at most
    if smallest < world.size:
        raise SonolexError(
            f"train.batch_size: expected a clip for each of {world.size} processes in every batch, found a batch of "
            f"{smallest} ({num_clips} training clips in batches of at most {params.batch_size}); train with fewer processes"
        )


def _exhausted(history: list[dict[str, float]], params: TrainParams) -> bool:
    if not params.early_stop_patience or not history:
        return False
    losses = [row["validation_loss"] for row in history]
    return len(losses) - 1 - losses.index(min(losses)) >= params.early_stop_patience


@contextmanager
def _progress_bar(epochs: int, done: int, num_clips: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    columns = (
        TextColumn("train"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs  loss {task.fields[loss]:.3f}  {task.fields[rate]:.0f} clips/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task("train", total=epochs, completed=done, loss=math.nan, rate=math.nan)

        def advance(row: dict[str, Any]) -> None:
            bar.update(task, advance=1, loss=row["loss"], rate=row["clips_per_second"])
            finished = int(bar.tasks[0].completed)
            if not bar.console.is_terminal and finished % max(1, epochs // 5) == 0:
                log.info(
                    "epoch %d of %d: loss %.3f, %.0f clips/s (%d clips)",
                    finished, epochs, row["loss"], row["clips_per_second"], num_clips,
                )  # fmt: skip

        yield advance
