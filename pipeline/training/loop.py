"""Training loop: epochs of steps over the training clips of a fold, with a fixed schedule, checkpoints and validation.

Without validation clips (the default with K folds) all epochs are run and the averaged weights at the end are the model.
With them, and `keep_best` or `early_stop_patience` above 0, the weights of the epoch that is best by `epoch_metric` are
stored.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Generic, NamedTuple, Protocol

import torch
from torch import Tensor

from pipeline.errors import SonolexError
from pipeline.models.neural_model import NeuralModel
from pipeline.seeding import named_seed
from pipeline.training import checkpoints, sampling
from pipeline.training.augmentation.partners import Partners
from pipeline.training.averaging import WeightAverage
from pipeline.training.batches import StoredBatch
from pipeline.training.distributed import ALONE, DistributedContext
from pipeline.training.epoch_choice import best_epoch, epoch_scores, is_exhausted
from pipeline.training.freezing import Freezing
from pipeline.training.gradient_flow import GradientFlow, LayerGradient
from pipeline.training.progress_bar import progress_bar
from pipeline.training.schedules import rate_factor
from pipeline.training.settings import TrainParams
from pipeline.training.step import Learner, M, M_contra, NotFiniteError, Task
from pipeline.training.validation import Examples

log = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 20.0  # between two checkpoints, the most that a kill loses


class Timing(NamedTuple):
    """Duration of a run, time before a kill included. Not reproducible, so not part of any artifact."""

    seconds: float
    epochs: list[dict[str, float]]  # clips_per_second, and input_fraction: the fraction of time spent waiting for clips


class Trained(NamedTuple):
    """Result of a run, apart from the model's weights."""

    history: list[dict[str, float]]  # one row per epoch; reproducible
    clips_seen: int
    timing: Timing
    gradients: list[LayerGradient]  # of the measured epochs, if any
    kept: dict[int, dict[str, Tensor]]  # state of the epochs of `checkpoint_ensemble`


class Measured(Protocol[M_contra]):
    """Interface of validation: metrics of the averaged weights on clips that are not trained on, after every epoch."""

    total: Tensor  # accumulated over epochs, and saved in checkpoints

    def measure(
        self, model: M_contra, average: WeightAverage, epoch: int, context: DistributedContext
    ) -> dict[str, float]:
        """Return the epoch's numbers by name, `validation_loss` among them."""


def train(
    model: M,
    params: TrainParams,
    task: Task[M],
    examples: Examples,
    validation: Measured[M] | None,
    *,
    seed: int,
    on_epoch: Callable[[dict[str, float], dict[str, float]], None],
    checkpoint: Path,
    context: DistributedContext = ALONE,
) -> Trained:
    """Train `model` for `task` in place; it ends with the averaged (or best) weights.

    Resumes from `checkpoint` if there is one.

    In a `context` of several processes each calls this with the same arguments, the model on its device, and ends with the
    same weights; only the main process writes checkpoints.

    `on_epoch` is called once for every epoch, those before a resume included, with its row of the history and its timing.
    A row has: loss, learning_rate (of the last step), gradient_norm (mean over the steps, of those that did not overflow),
    the task's measures, and with validation clips what `validation.measure` returns.
    """
    if validation is None:
        require_no_choice(params, task.section)
    _require_a_clip_each(params, examples, context, task.section)
    started = time.perf_counter()
    _warn_of_settings_without_effect(model, params)
    run = _Run(Learner(model, params, task, context), examples, validation, seed, checkpoint)
    run.resume()
    history, timing = run.history, run.timing
    for row, pace in zip(history, timing, strict=True):
        on_epoch(row, pace)

    before = run.progress.metadata["seconds"]
    bar = (
        progress_bar(params.epochs, run.epoch, len(examples.clip_ids))
        if context.is_main_process
        else nullcontext(lambda row: None)
    )
    with bar as advance, training_options(model, params):
        while run.epoch < params.epochs and not is_exhausted(run.scores, params.early_stop_patience):
            context.require_launcher()
            row = run.do_epoch()
            on_epoch(row, timing[-1])
            advance(row | timing[-1])
            run.progress.metadata["seconds"] = before + time.perf_counter() - started
            run.save_now_and_then()
    run.finish()
    seconds = before + time.perf_counter() - started
    looked_at = run.progress.metadata.get("gradients", [])
    return Trained(history, len(history) * len(examples.clip_ids), Timing(seconds, timing), looked_at, run.kept())


class _Run(Generic[M]):
    """State and steps of one training run, and its checkpoints."""

    def __init__(
        self, learner: Learner[M], examples: Examples, validation: Measured[M] | None, seed: int, checkpoint: Path
    ) -> None:
        self.learner, self.examples, self.validation = learner, examples, validation
        self.seed, self.checkpoint = seed, checkpoint
        predicted = validation.total if validation else torch.zeros(0, 0)
        self.progress = checkpoints.Progress(
            {}, {}, predicted, {"epoch": 0, "history": [], "timing": [], "seconds": 0.0}
        )
        self._saved_at, self._saved_epoch = time.perf_counter(), 0
        params = learner.params
        self._freezing = Freezing(learner.model, params.freeze)
        self._flow = GradientFlow(learner.model, params.epochs) if params.gradient_flow else None

    @property
    def epoch(self) -> int:
        """Return the number of finished epochs."""
        return int(self.progress.metadata["epoch"])

    @property
    def history(self) -> list[dict[str, float]]:
        """Return the rows of the finished epochs."""
        rows: list[dict[str, float]] = self.progress.metadata["history"]
        return rows

    @property
    def scores(self) -> list[float]:
        """Return the scores of the finished epochs by `epoch_metric`; empty without validation clips."""
        return epoch_scores(self.history, self.learner.params.epoch_metric) if self.validation else []

    @property
    def timing(self) -> list[dict[str, float]]:
        """Return the timing of the finished epochs, see `Timing`."""
        rows: list[dict[str, float]] = self.progress.metadata["timing"]
        return rows

    def resume(self) -> None:
        """Resume from the checkpoint, if there is a readable one."""
        if checkpoints.load_checkpoint(self.checkpoint, self.learner, self.progress):
            log.info("resuming after epoch %d of %d", self.epoch, self.learner.params.epochs)
            self._saved_epoch = self.epoch
        context = self.learner.context
        epochs = context.gather(self.epoch) if context.size > 1 else []
        if len(set(epochs)) > 1:
            raise SonolexError(
                f"{self.checkpoint}: expected every process to resume after the same epoch, found {epochs} by rank; the "
                "processes need a shared folder .sonolex/checkpoints"
            )

    def do_epoch(self) -> dict[str, float]:
        """Train for an epoch, validate, and return its row of the history."""
        learner, flow = self.learner, self._flow
        learner.on_gradients = flow.look if flow and self.epoch in flow.epochs else None
        row = self._steps()
        self.progress.metadata["epoch"] += 1
        if flow:
            self.progress.metadata.setdefault("gradients", []).extend(flow.rows(self.epoch))
        learner.average.after_epoch(self.epoch)
        if self.validation:
            row |= self.validation.measure(learner.model, learner.average, self.epoch, learner.context)
        self.history.append(row)
        if learner.params.chooses_epoch and best_epoch(self.scores) == len(self.history) - 1:
            self.progress.best.update({name: t.clone() for name, t in learner.average.values.items()})
        if self.epoch in learner.params.checkpoint_ensemble:
            state = learner.model.state_dict() | learner.average.values
            self.progress.kept.update({f"{self.epoch}/{name}": t.to("cpu", copy=True) for name, t in state.items()})
        return row

    def _steps(self) -> dict[str, float]:
        """Run an epoch's steps; random numbers are seeded by (seed, epoch, rank), so a resumed run draws the same."""
        learner, context, params = self.learner, self.learner.context, self.learner.params
        torch.manual_seed(named_seed(self.seed, "epoch", self.epoch))
        order = sampling.draw_rows(
            self.examples.targets, params.sampling, self.examples.weights
        )  # the same in all processes
        if context.size > 1:
            torch.manual_seed(named_seed(self.seed, "epoch", self.epoch, "rank", context.rank))
        self._freezing.begin_epoch(self.epoch)
        scores = self.scores
        seed = named_seed(self.seed, "epoch", self.epoch, "copies")  # the same in all processes
        examples = self.examples.in_epoch(params.augmentation.copies, seed)
        started = time.perf_counter()
        steps = math.ceil(len(order) / params.batch_size)
        batches = torch.tensor_split(order, steps)
        micro_batches = [cut(context.local_rows(rows), examples, params) for rows in batches]
        reader = _Reader(examples, [rows for of_batch in micro_batches for rows in of_batch], self._draw_partners())
        losses, norms, measured = [], [], []
        for index, rows in enumerate(batches):
            step = self.epoch * steps + index
            factor = rate_factor(params.schedule, step, steps_per_epoch=steps, num_epochs=params.epochs, scores=scores)
            rate = params.learning_rate * factor
            try:
                loss, norm = learner.step(reader.take(len(micro_batches[index])), len(rows), rate)
            except NotFiniteError as fault:
                raise self._stopped(fault, step, rate, rows, examples) from None
            losses.append(loss)
            norms.append(norm)
            measured.append(learner.measured)
        finite = [norm for norm in norms if math.isfinite(norm)]
        seconds = time.perf_counter() - started
        self.timing.append({"clips_per_second": len(order) / seconds, "input_fraction": reader.waited / seconds})
        return {
            "loss": sum(losses) / steps,
            "learning_rate": rate,
            "gradient_norm": sum(finite) / len(finite) if finite else math.nan,
            **{name: sum(values) / steps for name, *values in zip(learner.task.measures, *measured, strict=True)},
        }

    def _draw_partners(self) -> Callable[[Sequence[int]], Partners | None] | None:
        """Return the draw of partners of an epoch's micro-batches, with a generator of its own; None without partners."""
        sampler = self.examples.partners
        if sampler is None:
            return None
        seed = named_seed(self.seed, "epoch", self.epoch, "partners", self.learner.context.rank)
        return partial(sampler.draw, generator=torch.Generator().manual_seed(seed))

    def _stopped(self, fault: NotFiniteError, step: int, rate: float, rows: Tensor, examples: Examples) -> SonolexError:
        """Build the error for a loss or gradient that is not finite, with the place, the clips, and the last checkpoint."""
        names, section = examples.clip_ids, self.learner.task.section
        batch = fault.batch or examples.batches.take(rows.tolist())
        broken = [
            names[row] for row, clip in zip(batch.rows.tolist(), batch.inputs, strict=True) if not clip.isfinite().all()
        ]
        culprits = f"; clips with non-finite frames: {', '.join(broken)}" if broken else ""
        kept = (
            f"the state after epoch {self._saved_epoch} is kept in {self.checkpoint}"
            if self._saved_epoch
            else "no checkpoint had been written yet"
        )
        return SonolexError(
            f"{section}: step {step} (epoch {self.epoch + 1}): expected a finite {fault.what}, found {fault.found}; lower "
            f"{section}.learning_rate (now {self.learner.params.learning_rate}, {rate:.3g} at this step) or look at the "
            f"batch's clips: {', '.join(names[row] for row in batch.rows.tolist())}{culprits}; {kept}"
        )

    def save_now_and_then(self) -> None:
        """Write a checkpoint if the last one is old enough."""
        if self.learner.context.is_main_process and time.perf_counter() - self._saved_at > CHECKPOINT_SECONDS:
            checkpoints.save_checkpoint(self.checkpoint, self.learner, self.progress)
            self._saved_at, self._saved_epoch = time.perf_counter(), self.epoch

    def kept(self) -> dict[int, dict[str, Tensor]]:
        """Return the kept weights by epoch: those that would be stored if it were the last."""
        epochs: dict[int, dict[str, Tensor]] = {epoch: {} for epoch in self.learner.params.checkpoint_ensemble}
        for key, tensor in self.progress.kept.items():
            epoch, name = key.split("/")
            epochs[int(epoch)][name] = tensor
        return epochs

    def finish(self) -> None:
        """Set the model to the averaged or best weights, and remove the checkpoint."""
        average = self.learner.average
        average.values.update(self.progress.best)
        average.swap()
        if self.learner.context.is_main_process:
            checkpoints.remove_checkpoint(self.checkpoint)


def cut(rows: Tensor, examples: Examples, params: TrainParams) -> list[list[int]]:
    """Return a process's micro-batches of a batch: those of `train.accumulate`, and more where clips are long."""
    parts = torch.tensor_split(rows, params.accumulate)
    lengthening = 1 if examples.partners is None else params.augmentation.lengthening
    return [micro for part in parts for micro in examples.batches.bounded(part.tolist(), lengthening)]


class _Reader:
    """Reader of an epoch's micro-batches with their targets, which measures the time that training waits."""

    def __init__(
        self,
        examples: Examples,
        micro_batches: Sequence[Sequence[int]],
        draw: Callable[[Sequence[int]], Partners | None] | None,
    ) -> None:
        self.waited = 0.0
        self._targets = examples.targets
        self._batches = examples.batches.ahead(micro_batches, draw)

    def take(self, count: int) -> Iterator[tuple[StoredBatch, Tensor]]:
        """Yield the next `count` micro-batches."""
        for _ in range(count):
            started = time.perf_counter()
            batch = next(self._batches)
            self.waited += time.perf_counter() - started
            yield batch, self._targets[batch.rows]


def require_no_choice(params: TrainParams, section: str) -> None:
    """Raise SonolexError for a setting that needs validation clips, of a run without them."""
    if params.validated_setting:
        key, expected, found = params.validated_setting
        raise SonolexError(
            f"{section}.{key}: expected {expected} without validation clips, found {found}; set split.validation_fraction "
            f"above 0, or {key} to {expected}"
        )


def _require_a_clip_each(params: TrainParams, examples: Examples, context: DistributedContext, section: str) -> None:
    num_clips = len(examples.clip_ids)
    smallest = num_clips // math.ceil(num_clips / params.batch_size)  # of the batches, which differ by one at most
    if smallest // context.size < params.accumulate:
        micro = f" for each of {params.accumulate} micro-batches of" if params.accumulate > 1 else ""
        raise SonolexError(
            f"{section}.batch_size: expected a clip{micro or ' for'} each of {context.size} processes in every batch, found "
            f"a batch of {smallest} ({num_clips} training clips in batches of at most {params.batch_size}); train with "
            f"fewer processes{', or lower train.accumulate' if micro else ''}"
        )


@contextmanager
def training_options(model: NeuralModel, params: TrainParams) -> Iterator[None]:
    """Set a model's patchout and activation checkpointing by the settings, within a context."""
    if model.supports_activation_checkpointing:
        model.set_activation_checkpointing(params.activation_checkpointing)
    if model.supports_patchout:
        model.patchout = params.patchout
    try:
        yield
    finally:
        if model.supports_activation_checkpointing:
            model.set_activation_checkpointing(False)
        model.patchout = 0.0


def _warn_of_settings_without_effect(model: NeuralModel, params: TrainParams) -> None:
    asked = {
        "activation_checkpointing": (params.activation_checkpointing, model.supports_activation_checkpointing),
        "patchout": (params.patchout > 0, model.supports_patchout),
        "augmentation.token_noise": (params.augmentation.token_noise > 0, model.supports_token_noise),
    }
    asked |= {f"augmentation.{name}": (True, model.supports_masking) for name in params.augmentation.hiding}
    for setting, (wanted, supported) in asked.items():
        if wanted and not supported:
            log.warning("train.%s: expected a model that supports it, found one that does not: no effect", setting)
