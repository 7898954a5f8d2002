"""Training of models on all clips of the corpus, by the recipe of params.yaml, in a workspace that is removed afterwards.

The stages run as `dvc exp run --temp` runs them: in a folder below `.dvc/tmp/exps`, where relative paths in params.yaml mean
what they mean in the project, and the memo store is shared. The project's artifacts do not change.
"""

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from ruamel.yaml import YAML

from pipeline.artifacts.clips import open_clips
from pipeline.artifacts.layout import Layout, ModelId
from pipeline.artifacts.spectrogram import INDEX
from pipeline.artifacts.splits import SPLIT
from pipeline.artifacts.training_labels import TRAINING_LABELS, open_training_labels
from pipeline.errors import ParamsError
from pipeline.execution.housekeeping import WORKSPACE_PREFIX
from pipeline.grid import ExperimentParams
from pipeline.params import PARAMS_PATH, load_params, read_params, validate_params
from pipeline.paths import workspaces_folder
from pipeline.training.settings import TrainParams
from pipeline.vocabulary.registry import load_vocabulary_params
from stages import development, network, pretrain, supervision, tokenize, train, vocabulary

log = logging.getLogger(__name__)

FOLD = "all"  # name of the fold in which every usable clip is a training clip


@contextlib.contextmanager
def retrained(models: Sequence[ModelId], seed: int, project: Layout, params_path: Path) -> Iterator[Layout]:
    """Train models on all usable clips, and yield the paths of the workspace that holds them, with the fold `FOLD`.

    Raises ParamsError for a recipe that needs validation clips, ArtifactError where the project's artifacts are missing or
    were made with other settings than params.yaml.
    """
    document = read_params(params_path)
    if setting := validate_params(TrainParams, document["train"], "train", params_path).validated_setting:
        key, expected, found = setting
        raise ParamsError(
            f"{params_path}: train.{key}: expected {expected}, since --retrain leaves no validation clips to compare epochs "
            f"by, found {found}; set it to {expected}, and train.epochs to the epochs wanted"
        )
    # One process, which shows its progress here; curves are not kept, so that no tracker is needed.
    document["launch"] |= {"train_processes": 1, "trackers": []}
    with _workspace(project) as layout:
        YAML(typ="safe").dump(document, layout.root / PARAMS_PATH.name)
        _link_data(layout, project)
        with contextlib.chdir(layout.root):
            _run_stages(models, seed)
        yield layout


@contextlib.contextmanager
def _workspace(project: Layout) -> Iterator[Layout]:
    with contextlib.chdir(project.root):
        folder = workspaces_folder()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=WORKSPACE_PREFIX, dir=folder) as name:
            yield Layout(Path(name))
    finally:
        with contextlib.suppress(OSError):  # others use it
            os.removedirs(folder)


def _link_data(layout: Layout, project: Layout) -> None:
    """Link what all folds share, and write the split in which every usable clip is a training clip."""
    clips, index = open_clips(project.clips), INDEX.open(project.spectrogram_index)
    usable = {clip for clip, status in zip(index.list("clip_id"), index.list("status"), strict=True) if status == "ok"}
    layout.data.mkdir()
    layout.clips.symlink_to(project.clips.resolve())
    labels = open_training_labels(project.training_labels)
    # Labels of one fold's training clips serve here too, since no clip is left to test.
    TRAINING_LABELS.write(layout.training_labels, labels.columns, {**labels.metadata, "fold": ""})
    layout.spectrogram.symlink_to(project.spectrogram.resolve())
    layout.copies.symlink_to(project.copies.resolve())
    ids = clips.list("clip_id")
    roles = ["train" if clip in usable else "excluded" for clip in ids]
    rule = "every usable clip is a training clip"
    SPLIT.write(layout.split(FOLD), {"clip_id": ids, "role": roles}, {"fold": FOLD, "seed": 0, "rule": rule})
    log.info("training on all %d usable clips in %s", roles.count("train"), layout.root)


def _run_stages(models: Sequence[ModelId], seed: int) -> None:
    development.main(FOLD)
    grid, done = load_params(ExperimentParams, "experiment"), set[ModelId | str]()
    for model in models:
        _train(model, seed, grid, done)


def _train(model: ModelId, seed: int, grid: ExperimentParams, done: set[ModelId | str]) -> None:
    """Train a model after all that it follows from; `done` are the models and vocabularies of before."""
    if model in done:
        return
    if model.vocabulary and model.vocabulary not in done:
        _fit_vocabulary(model.vocabulary, seed, grid, done)
    if model.pretrained:
        pretrain.main(model.entry, model.vocabulary, FOLD, seed)
    train.main(model.entry, FOLD, seed, vocabulary=model.vocabulary, pretrained=model.pretrained)
    done.add(model)


def _fit_vocabulary(name: str, seed: int, grid: ExperimentParams, done: set[ModelId | str]) -> None:
    params = load_vocabulary_params(name)
    if params.supervised:
        supervision.main(name, FOLD)
    if params.hidden_states:
        _train(grid.model(params.hidden_states.model), seed, grid, done)
        network.main(name, FOLD)
    vocabulary.main(name, FOLD)
    tokenize.main(name, FOLD)
    done.add(name)
