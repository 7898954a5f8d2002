"""Masked-token pretraining of a network on a fold's sentences, without any label."""

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
from pipeline.training.distributed import World
from pipeline.training.inputs import TokenInputs
from pipeline.training.loop import Trained, train
from pipeline.training.masked_words import MaskedValidation, MaskedWords, Unigrams
from pipeline.training.neural import curves
from pipeline.training.settings import PretrainParams, TrainParams
from pipeline.training.validation import Examples
from pipeline.training.word_predictor import WordPredictor, new_reader


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
    world: World,
    trackers: Sequence[str] = (),
) -> tuple[dict[str, np.ndarray], Trained]:
    """Learn to fill in hidden words of these clips; return the weights by name and the run's history.

    `settings` are `masking.settings(...)`. The rows of the history have, besides what `train` puts there, the task's
    masked_accuracy, and unigram_loss and unigram_accuracy: what the words' frequencies alone score on the same clips. With
    validation clips, which are not learned from, they have all of these of them too.
    """
    torch.set_flush_denormal(True)  # see `train_model`
    torch.manual_seed(named_seed(seed, "weights"))
    reader = new_reader(params, inputs.facts)
    reader.input.load_codebooks(vocabulary.word_vectors())
    sentences = inputs.arrays(clip_ids)
    unigrams = Unigrams(sentences, inputs.facts["vocabulary_size"])
    model = WordPredictor(reader, torch.from_numpy(unigrams.frequencies).float()).to(world.device)
    task = MaskedWords(masking.mask_share, masking.mask_span)
    known = dict(zip(("unigram_loss", "unigram_accuracy"), unigrams.measure(sentences), strict=True))
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
        "input": inputs.facts,
        "source": inputs.source,
        "clips": [list(clip_ids), list(validation_ids)],
    }
    code = code_version(pretrain, kinds=kinds_in(identity["params"]))
    tracked = {name: identity[name] for name in ("params", "pretrain", "seed")}
    with curves(curves_path, world, trackers, tracked) as log_epoch:
        trained = train(
            model,
            settings,
            task,
            Examples(Batches(inputs, clip_ids, NOT_NORMALISED), torch.zeros(len(clip_ids), 0), list(clip_ids)),
            measured,
            seed=seed,
            on_epoch=lambda row, timing: log_epoch(row | known, timing),
            checkpoint=checkpoints.CHECKPOINTS / f"{checkpoints.run_key(identity, code)}.safetensors",
            world=world,
        )
    trained = trained._replace(history=[row | known for row in trained.history])
    return {name: values.detach().cpu().numpy() for name, values in model.learned().items()}, trained
