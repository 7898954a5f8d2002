"""Training of networks on a fold's clips: construction, normalisation, training loop and curves.

Every epoch is a row of `epochs.csv` (`pipeline/artifacts/curves.py`) and goes to the chosen trackers, as `train/loss`,
`train/learning_rate` ... Of several processes only the main one writes.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from pipeline.artifacts.clips import Link
from pipeline.artifacts.curves import writing_epochs
from pipeline.artifacts.model import InputMetadata
from pipeline.execution.code import code_version, kinds_in
from pipeline.models.base import ModelParams
from pipeline.models.network import Network, NetworkParams, fit_normalisation, open_pretrained_weights
from pipeline.params import load_params
from pipeline.seeding import named_seed
from pipeline.training import checkpoints
from pipeline.training.batches import Batches
from pipeline.training.classification import Classification
from pipeline.training.distributed import DistributedContext, init_distributed
from pipeline.training.gradient_flow import write_gradients
from pipeline.training.inputs import require_short_clips, require_windows, warn_of_cut_clips
from pipeline.training.loop import Trained
from pipeline.training.loop import train as run_epochs
from pipeline.training.loss_settings import loss_files
from pipeline.training.losses import Loss, build_loss, positive_shares
from pipeline.training.sampling import clip_weights
from pipeline.training.settings import TrainParams
from pipeline.training.step import keep_freed_memory
from pipeline.training.token_predictor import load_pretrained
from pipeline.training.trackers import TrackedRun, open_trackers
from pipeline.training.trainers import Examples, Fitted, Score, TrainingData, Weights
from pipeline.training.validation import Examples as StoredExamples
from pipeline.training.validation import Validation

log = logging.getLogger(__name__)


def train(
    params: ModelParams,
    data: TrainingData,
    *,
    seed: int,
    curves_path: Path,
    score: Score,
    trackers: Sequence[str],
) -> Fitted | None:
    """Train by the section `train` of params.yaml and return the model, or None in all processes but the main one."""
    with init_distributed() as context:
        weights, kept, input_metadata, link, trained = train_model(
            params, load_params(TrainParams, "train"), data,
            seed=seed, curves_path=curves_path, context=context, score=score, trackers=trackers,
        )  # fmt: skip
    if not context.is_main_process:
        return None
    return Fitted(weights, kept, input_metadata, link, trained.clips_seen, context.size, *trained.timing)


def train_model(
    params: ModelParams,
    settings: TrainParams,
    data: TrainingData,
    *,
    seed: int,
    curves_path: Path,
    context: DistributedContext,
    score: Score,
    trackers: Sequence[str] = (),
) -> tuple[Weights, dict[int, Weights], InputMetadata, Link, Trained]:
    """Train and return the weights, those of kept epochs, the metadata of the input, the link, and the run's history.

    With pretrained weights all weights but the head's are initialised from them. `score` computes metrics of validation
    clips, if there are any, in every epoch. All random numbers are derived from `seed`. `curves_path` ends in model, fold
    and seed.
    """
    assert isinstance(params, NetworkParams)
    inputs, training, validation = data.inputs, data.training, data.validation
    loss = _loss(settings, data)
    keep_freed_memory()
    torch.set_flush_denormal(True)  # averaged weights become denormal, a hundred times slower on a CPU
    torch.manual_seed(named_seed(seed, "weights"))
    checkpoint = open_pretrained_weights(params, inputs.front_end)
    normalisation = fit_normalisation(params, lambda: inputs.statistics(training.clip_ids), checkpoint)
    input_metadata: InputMetadata = {**inputs.metadata, "normalisation": normalisation}
    if remark := params.rate_remark(settings.learning_rate):
        log.warning("pretrained: %s", remark)
    if params.window is not None:
        input_metadata["frame_rate"] = inputs.frame_rate
    if checkpoint is not None:
        input_metadata["pretrained"] = checkpoint.metadata
    model = Network(params, input_metadata, training.targets.shape[1], loss.link)
    if data.vocabulary is not None:
        model.input.load_codebooks(data.vocabulary.token_vectors())
    if checkpoint is not None:
        model.load_weights(params, checkpoint)
    if data.pretrained is not None:
        load_pretrained(model, data.pretrained)
        metadata = data.pretrained.metadata
        input_metadata["masked_pretraining"] = {key: metadata[key] for key in ("weights", "pretrain", "measures")}
    warn_of_cut_clips(inputs, [*training.clip_ids, *validation.clip_ids], model)
    require_windows(inputs, training.clip_ids, model)
    require_short_clips(inputs, training.clip_ids, model)
    model = model.to(context.device)

    def examples(part: Examples) -> StoredExamples:
        batches = Batches(inputs, part.clip_ids, normalisation, model.frames_read)
        weights = None if part.weights is None else torch.from_numpy(part.weights)
        return StoredExamples(batches, torch.from_numpy(part.targets), list(part.clip_ids), weights)

    identity = {
        "params": params.model_dump(mode="json"),
        "train": settings.model_dump(mode="json"),
        "files": list(loss_files(settings.loss).values()),
        "seed": seed,
        "input": input_metadata,
        "front_end": inputs.front_end,
        "source": inputs.source,
        "clips": [list(training.clip_ids), list(validation.clip_ids)],
        "targets": [hashlib.sha256(part.targets.tobytes()).hexdigest() for part in (training, validation)],
        "weights": "" if training.weights is None else hashlib.sha256(training.weights.tobytes()).hexdigest(),
    }
    code = code_version(train_model, kinds=kinds_in(identity["params"]))
    seen = examples(training)
    measured = Validation(examples(validation), loss, score, settings.batch_size) if validation.clip_ids else None
    tracked = {name: identity[name] for name in ("params", "train", "seed")}
    with curves(curves_path, context, trackers, tracked) as log_epoch:
        trained = run_epochs(
            model,
            settings,
            Classification(settings, loss, inputs.time_axis + 1, seen.batches.log_unit),
            seen,
            measured,
            seed=seed,
            on_epoch=log_epoch,
            checkpoint=checkpoints.CHECKPOINTS / f"{checkpoints.run_key(identity, code)}.safetensors",
            context=context,
        )
    if context.is_main_process and trained.gradients:
        write_gradients(curves_path, trained.gradients)
    kept = {epoch: _arrays(state) for epoch, state in trained.kept.items()}
    return _arrays(model.state_dict()), kept, input_metadata, loss.link, trained


def _loss(settings: TrainParams, data: TrainingData) -> Loss:
    """Return the loss of the params, for the classes as often as an epoch has them."""
    targets = torch.from_numpy(data.training.targets)
    published = None if data.training.weights is None else torch.from_numpy(data.training.weights)
    drawn = clip_weights(targets) if published is None else published
    shares = positive_shares(targets, drawn if settings.sampling == "balanced" else None)
    return build_loss(settings.loss, data.label_kind, data.classes, shares)


def _arrays(state: Mapping[str, torch.Tensor]) -> Weights:
    return {name: tensor.detach().cpu().numpy() for name, tensor in state.items()}


@contextmanager
def curves(
    path: Path, context: DistributedContext, trackers: Sequence[str], params: dict[str, object]
) -> Iterator[Callable[[dict[str, float], dict[str, float]], None]]:
    """Yield a function that writes an epoch's numbers and timing to the table and the trackers; in other processes a no-op.

    The timing goes to the trackers only, since the table is an artifact.
    """
    if not context.is_main_process:
        yield lambda row, timing: None
        return
    run = TrackedRun("/".join(path.parts[-3:]), params)
    with open_trackers(trackers, run) as track, writing_epochs(path) as append:

        def log_epoch(row: dict[str, float], timing: dict[str, float]) -> None:
            track({f"train/{name}": value for name, value in (row | timing).items()}, append(row))

        yield log_epoch
