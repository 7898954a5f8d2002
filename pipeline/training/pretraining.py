"""Masked-token pretraining of a network on a fold's token sequences, without labels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pipeline.artifacts.vocabulary import Vocabulary
from pipeline.execution.code import code_version, kinds_in
from pipeline.models.base import NOT_NORMALISED, ModelParams
from pipeline.seeding import named_seed
from pipeline.training import checkpoints
from pipeline.training.batches import Batches
from pipeline.training.distributed import DistributedContext
from pipeline.training.inputs import TokenInputs, require_short_clips
from pipeline.training.loop import Trained, train
from pipeline.training.masked_tokens import MaskedTokens, MaskedValidation, Unigrams
from pipeline.training.neural import curves
from pipeline.training.settings import PretrainParams, TrainParams
from pipeline.training.token_predictor import TokenPredictor, new_reader
from pipeline.training.validation import Examples


def pretrain(
    params: ModelParams,
    masking: PretrainParams,
    settings: TrainParams,
    inputs: TokenInputs,
    clip_ids: Sequence[str],
    validation_ids: Sequence[str],
    vocabulary: Vocabulary,
    *,
    seed: int,
    curves_path: Path,
    context: DistributedContext,
    trackers: Sequence[str] = (),
) -> tuple[dict[str, np.ndarray], Trained]:
    """Train to predict masked tokens of these clips; return the weights by name and the run's history.

    `settings` is `masking.settings(...)`. In addition to the columns of `train`, the rows of the history have
    masked_accuracy, and unigram_loss and unigram_accuracy, those of token frequencies alone on the same clips; with
    validation clips also the same metrics of these.
    """
    torch.set_flush_denormal(True)  # see `train_model`
    torch.manual_seed(named_seed(seed, "weights"))
    reader = new_reader(params, inputs.metadata)
    require_short_clips(inputs, clip_ids, reader)
    reader.input.load_vocabulary(vocabulary)
    sequences = inputs.arrays(clip_ids)
    unigrams = Unigrams(sequences, inputs.metadata["vocabulary_size"])
    model = TokenPredictor(reader, torch.from_numpy(unigrams.frequencies).float()).to(context.device)
    task = MaskedTokens(masking.mask_share, masking.mask_span)
    known = dict(zip(("unigram_loss", "unigram_accuracy"), unigrams.measure(sequences), strict=True))
    measured = None
    if validation_ids:
        measured = MaskedValidation(task, Batches(inputs, validation_ids, NOT_NORMALISED), settings.batch_size)
        names = ("validation_unigram_loss", "validation_unigram_accuracy")
        known |= zip(names, unigrams.measure(inputs.arrays(validation_ids)), strict=True)

    identity = {
        "params": params.model_dump(mode="json"),
        "pretrain": masking.model_dump(mode="json"),
        "train": settings.model_dump(mode="json"),
        "seed": seed,
        "input": inputs.metadata,
        "source": inputs.source,
        "clips": [list(clip_ids), list(validation_ids)],
    }
    code = code_version(pretrain, kinds=kinds_in(identity["params"]))
    tracked = {name: identity[name] for name in ("params", "pretrain", "seed")}
    with curves(curves_path, context, trackers, tracked) as log_epoch:
        trained = train(
            model,
            settings,
            task,
            Examples(Batches(inputs, clip_ids, NOT_NORMALISED), torch.zeros(len(clip_ids), 0), list(clip_ids)),
            measured,
            seed=seed,
            on_epoch=lambda row, timing: log_epoch(row | known, timing),
            checkpoint=checkpoints.CHECKPOINTS / f"{checkpoints.run_key(identity, code)}.safetensors",
            context=context,
        )
    trained = trained._replace(history=[row | known for row in trained.history])
    return {name: values.detach().cpu().numpy() for name, values in model.learned().items()}, trained
