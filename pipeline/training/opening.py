"""Opening of what a model is trained on: a development set with targets, its frames, tokens or both, and initial weights."""

from pathlib import Path
from typing import NamedTuple

from pipeline.artifacts.development import (
    DEVELOPMENT_ROLES,
    DevelopmentTable,
    TargetTable,
    open_development,
    open_targets,
)
from pipeline.artifacts.model import Reads
from pipeline.artifacts.pretrained import open_pretrained
from pipeline.artifacts.spectrogram import open_spectrogram
from pipeline.artifacts.splits import clips_of
from pipeline.artifacts.vocabulary import Vocabulary, open_vocabulary
from pipeline.errors import CorpusError
from pipeline.training.copies import open_copies
from pipeline.training.inputs import FrameInputs, open_inputs
from pipeline.training.trainers import Examples, TrainingData


class DataPaths(NamedTuple):
    """Paths of the artifacts that a model learns from."""

    development: Path
    targets: Path
    source: Path  # the spectrogram, or the fold's tokens
    vocabulary: Path | None
    pretrained: Path | None
    copies: tuple[Path, ...] = ()  # spectrograms of copies of the clips
    frames: Path | None = None  # the spectrogram, beside tokens that are assigned anew in training


def open_training_data(reads: Reads, paths: DataPaths, fold: str) -> tuple[TrainingData, TargetTable]:
    """Return the training and validation clips of a fold, and the table that their targets are from.

    Raises CorpusError without training clips, ArtifactError where the artifacts do not belong together.
    """
    development = open_development(paths.development, fold=fold)
    targets = open_targets(paths.targets, development)
    vocabulary = open_vocabulary(paths.vocabulary) if paths.vocabulary else None
    inputs = open_inputs(reads, paths.source, vocabulary)
    inputs.require_development(development)
    roles = {role: clips_of(development, role) for role in DEVELOPMENT_ROLES}
    if not roles["train"]:
        raise CorpusError(f"{paths.source}: expected training clips of fold {fold} with frames, found none")
    pretrained = open_pretrained(paths.pretrained, fold=fold, source=inputs.source) if paths.pretrained else None
    training, validation = (Examples.of(targets, ids) for ids in roles.values())
    frames = open_frames(paths.frames, development, vocabulary) if paths.frames and vocabulary else None
    copied = inputs if isinstance(inputs, FrameInputs) else frames
    copies = open_copies(paths.copies, copied, development) if copied else []
    label_kind, classes = targets.metadata["label_kind"], targets.metadata["classes"]
    data = TrainingData(inputs, training, validation, label_kind, vocabulary, pretrained, classes, copies, frames)
    return data, targets


def open_frames(path: Path, development: DevelopmentTable, vocabulary: Vocabulary) -> FrameInputs:
    """Open the frames of a development set. Raises ArtifactError unless its vocabulary is of the same front end."""
    spectrogram = open_spectrogram(path)
    vocabulary.require_front_end(spectrogram)
    frames = FrameInputs(spectrogram)
    frames.require_development(development)
    return frames
