"""Training of networks on a fold's clips: construction, normalisation, training loop and curves.

Every epoch is a row of `epochs.csv` (`pipeline/artifacts/curves.py`) and goes to the chosen trackers, as `train/loss`,
`train/learning_rate` ... Of several processes only the main one writes.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipeline.artifacts.clips import Link
from pipeline.artifacts.curves import writing_epochs
from pipeline.artifacts.model import InputMetadata, Normalisation
from pipeline.artifacts.vocabulary import FeatureSpace, Vocabulary
from pipeline.errors import SonolexError
from pipeline.execution.code import code_version, kinds_in
from pipeline.models.base import NOT_NORMALISED, ModelParams
from pipeline.models.baselines.base import LazyClips
from pipeline.models.network import Network, NetworkParams, fit_normalisation, open_pretrained_weights
from pipeline.params import load_params
from pipeline.registry import Registry
from pipeline.seeding import named_seed
from pipeline.training import checkpoints
from pipeline.training.augmentation.applying import FrameTokenizer
from pipeline.training.augmentation.noise import NoiseBanks
from pipeline.training.augmentation.noise_sounds import open_background, open_coloured_noise
from pipeline.training.augmentation.partners import PartnerSampler, expected_positives
from pipeline.training.augmentation.settings import RETOKENIZE
from pipeline.training.batches import CACHE_BYTES, Batches
from pipeline.training.classification import Classification
from pipeline.training.distributed import DistributedContext, init_distributed
from pipeline.training.gradient_flow import write_gradients
from pipeline.training.inputs import FrameInputs, Inputs, require_short_clips, require_windows, warn_of_cut_clips
from pipeline.training.loop import Trained
from pipeline.training.loop import train as run_epochs
from pipeline.training.lora import add_adapters, merge_adapters
from pipeline.training.loss_settings import loss_files, loss_link
from pipeline.training.losses import Loss, build_loss, positive_shares
from pipeline.training.rate_advice import rate_remark
from pipeline.training.sampling import clip_weights
from pipeline.training.settings import TrainParams
from pipeline.training.step import keep_freed_memory
from pipeline.training.token_predictor import load_pretrained
from pipeline.training.trackers import TrackedRun, open_trackers
from pipeline.training.trainers import Examples, Fitted, Score, TrainingData, Weights
from pipeline.training.validation import Examples as StoredExamples
from pipeline.training.validation import Validation

if TYPE_CHECKING:
    from pipeline.training.augmentation.retokenizing import Retokenizer

log = logging.getLogger(__name__)

# A registry, so that other runs do not depend on the code of the search.
TOKENIZERS: "Registry[type[Retokenizer]]" = Registry(
    "assignment of augmented frames", {"retokenize": "pipeline.training.augmentation.retokenizing:Retokenizer"}
)


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
    keep_freed_memory()
    torch.set_flush_denormal(True)  # averaged weights become denormal, a hundred times slower on a CPU
    link = loss_link(settings.loss, data.label_kind)
    model, input_metadata = initial_network(params, data, link, seed=seed)
    warn_of_cut_clips(inputs, [*training.clip_ids, *validation.clip_ids], model)
    if remark := rate_remark(params, settings):
        log.warning("pretrained: %s", remark)
    model = model.to(context.device)
    if settings.lora is not None:
        torch.manual_seed(named_seed(seed, "adapters"))
        add_adapters(model, settings.lora)
    task, seen = training_task(settings, data, input_metadata["normalisation"], model.frames_read)
    background = task.banks.background
    identity = {
        "params": params.model_dump(mode="json"),
        "train": settings.model_dump(mode="json"),
        "files": list(loss_files(settings.loss).values()),
        "seed": seed,
        "input": input_metadata,
        "front_end": inputs.front_end,
        "source": inputs.source,
        "copies": [copy.source for copy in data.copies],
        "clips": [list(training.clip_ids), list(validation.clip_ids)],
        "targets": [
            hashlib.sha256(np.ascontiguousarray(part.targets).data).hexdigest() for part in (training, validation)
        ],
        "weights": "" if training.weights is None else hashlib.sha256(training.weights.tobytes()).hexdigest(),
        "groups": hashlib.sha256("\n".join(training.groups).encode()).hexdigest(),
        "background": "" if background is None else background.digest,
    }
    kinds = kinds_in(identity["params"]) | ({RETOKENIZE} if data.frames else set())
    code = code_version(train_model, kinds=kinds)
    measured = None
    if validation.clip_ids:
        held_out = stored_examples(inputs, validation, input_metadata["normalisation"], model.frames_read)
        measured = Validation(held_out, task.loss_function, score, settings.batch_size)
    tracked = {name: identity[name] for name in ("params", "train", "seed")}
    with curves(curves_path, context, trackers, tracked) as log_epoch:
        trained = run_epochs(
            model,
            settings,
            task,
            seen,
            measured,
            seed=seed,
            on_epoch=log_epoch,
            checkpoint=checkpoints.CHECKPOINTS / f"{checkpoints.run_key(identity, code)}.safetensors",
            context=context,
        )
    if context.is_main_process and trained.gradients:
        write_gradients(curves_path, trained.gradients)
    kept = {epoch: _arrays(state, settings) for epoch, state in trained.kept.items()}
    return _arrays(model.state_dict(), settings), kept, input_metadata, link, trained


def training_loss(settings: TrainParams, data: TrainingData, *, sums: bool) -> Loss:
    """Return the loss of the params, for the classes as often as an epoch has them after mixing, if clips can be summed."""

    def shares() -> torch.Tensor:
        targets = torch.from_numpy(data.training.targets)
        published = None if data.training.weights is None else torch.from_numpy(data.training.weights)
        drawn = clip_weights(targets) if published is None else published
        own = positive_shares(targets, drawn if settings.sampling == "balanced" else None)
        return expected_positives(own, settings.augmentation, others=positive_shares(targets), sums=sums)

    return build_loss(settings.loss, data.label_kind, data.classes, shares)


def training_task(
    settings: TrainParams, data: TrainingData, normalisation: Normalisation, frames_read: Callable[[int], int]
) -> tuple[Classification, StoredExamples]:
    """Return the task of a run and its training clips, with what augmentation mixes them with.

    `frames_read` is how many frames the network computes for a clip of so many.

    Raises SonolexError where augmentation lacks what it needs: sounds of a folder, or groups of clips.
    """
    options, read, tokenizer = settings.augmentation, data.frames or data.inputs, None
    if data.frames and data.vocabulary:
        tokenizer, normalisation = open_tokenizer(data.vocabulary, data.frames, data.training.clip_ids), NOT_NORMALISED
        frames_read = partial(_frames_read, data.vocabulary.space, frames_read)
    seen = stored_examples(read, data.training, normalisation, frames_read, data.copies)
    if options.copies and not data.copies and not read.time_axis:
        raise SonolexError(
            f"train.augmentation.copies: expected 0 without copies of the clips, found {options.copies:g}; list copies in "
            "spectrogram.copies and run `dvc repro`, or set it to 0"
        )
    scale = seen.batches.power_scale
    if scale is not None and tokenizer is None and normalisation["kind"] == "none":  # else 0 is the mean
        (mean, _), *_ = read.statistics(data.training.clip_ids)
        scale = scale._replace(typical=mean)
    banks = NoiseBanks(open_background(options.background, scale), open_coloured_noise(options.coloured_noise, scale))
    sampler = PartnerSampler(options, seen.targets, data.training.groups, sums=scale is not None)
    loss = training_loss(settings, data, sums=scale is not None)
    task = Classification(settings, loss, read.time_axis + 1, scale, banks, tokenizer)
    return task, seen._replace(partners=sampler if sampler.draws_any else None)


def open_tokenizer(vocabulary: Vocabulary, frames: FrameInputs, clip_ids: Sequence[str]) -> FrameTokenizer:
    """Return the assignment of the frames of training clips. Raises SonolexError for a vocabulary that has none by torch."""
    return TOKENIZERS[RETOKENIZE](vocabulary, [mean for mean, _ in frames.statistics(clip_ids)])


def _frames_read(space: FeatureSpace, tokens_read: Callable[[int], int], num_frames: int) -> int:
    """Return how many frames are computed for a clip of so many, by a network that reads their tokens."""
    return space.stack * tokens_read(space.num_tokens(num_frames))


def initial_network(
    params: NetworkParams, data: TrainingData, link: Link, *, seed: int
) -> tuple[Network, InputMetadata]:
    """Build a network with its initial weights, random or pretrained, and return it with the metadata of its input.

    Raises SonolexError where pretrained weights do not fit, or the length of training clips does not.
    """
    inputs, training = data.inputs, data.training
    torch.manual_seed(named_seed(seed, "weights"))
    checkpoint = open_pretrained_weights(params, inputs.front_end, inputs.source)
    normalisation = fit_normalisation(params, lambda: inputs.statistics(training.clip_ids), checkpoint)
    input_metadata: InputMetadata = {**inputs.metadata, "normalisation": normalisation}
    if checkpoint is not None:
        input_metadata["pretrained"] = checkpoint.metadata
    if params.window is not None:
        input_metadata["frame_rate"] = inputs.frame_rate
    clips = LazyClips(len(training.clip_ids), lambda clip: inputs.arrays([training.clip_ids[clip]])[0])
    input_metadata |= params.input.metadata_of(inputs.front_end, data.vocabulary)
    input_metadata |= params.stem.fit(inputs.front_end, inputs.frame_rate, params.input.levels(clips, data.vocabulary))
    model = Network(params, input_metadata, training.targets.shape[1], link)
    if data.vocabulary is not None:
        model.input.load_vocabulary(data.vocabulary)
    if checkpoint is not None:
        checkpoint.choose_classes(data.classes)
        model.load_weights(params, checkpoint)
    if data.pretrained is not None:
        load_pretrained(model, data.pretrained)
        metadata = data.pretrained.metadata
        input_metadata["masked_pretraining"] = {key: metadata[key] for key in ("weights", "pretrain", "measures")}
    require_windows(inputs, training.clip_ids, model)
    for read in (inputs, *([data.frames] if data.frames else ()), *data.copies):
        require_short_clips(read, training.clip_ids, model)
    return model, input_metadata


def stored_examples(
    inputs: Inputs,
    part: Examples,
    normalisation: Normalisation,
    frames_read: Callable[[int], int],
    copies: Sequence[Inputs] = (),
) -> StoredExamples:
    """Return the clips of a role, and copies of them, as the training loop reads them."""
    share = CACHE_BYTES // (1 + len(copies))
    batches, *others = (Batches(read, part.clip_ids, normalisation, frames_read, share) for read in (inputs, *copies))
    weights = None if part.weights is None else torch.from_numpy(part.weights)
    return StoredExamples(batches, torch.from_numpy(part.targets), list(part.clip_ids), weights, copies=others)


def _arrays(state: Mapping[str, torch.Tensor], settings: TrainParams) -> Weights:
    """Return a state as it is stored: without adapters, which are merged."""
    merged = state if settings.lora is None else merge_adapters(state, settings.lora)
    return {name: tensor.detach().cpu().numpy() for name, tensor in merged.items()}


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
