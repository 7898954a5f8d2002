"""Registry of trainers: networks by gradient descent, classical models by one fit.

`way_of` chooses the trainer of a model, and code identity follows only that one: a changed schedule reruns no classical
model. Imports no torch: classical models are fitted without it.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np

from pipeline.artifacts.clips import LabelKind, Link
from pipeline.artifacts.development import TargetTable
from pipeline.artifacts.model import InputMetadata
from pipeline.artifacts.pretrained import Pretrained
from pipeline.artifacts.vocabulary import Vocabulary
from pipeline.models.base import ModelParams
from pipeline.models.registry import BASELINES
from pipeline.registry import Registry
from pipeline.training.copies import CopiedFrames
from pipeline.training.inputs import FrameInputs, Inputs
from pipeline.training.targets import class_targets, group_names, sampling_weights

Weights = dict[str, np.ndarray]  # by name
Score = Callable[[np.ndarray, np.ndarray], dict[str, float]]  # of an epoch, from scores and targets (clip, class)


class Trainer(Protocol):
    """Interface of training modules."""

    def train(
        self,
        params: ModelParams,
        data: "TrainingData",
        *,
        seed: int,
        curves_path: Path,
        score: Score,
        trackers: Sequence[str],
    ) -> "Fitted | None":
        """Train a model of the section `params`, and write its curves; None in all processes but the leading one."""


TRAINERS: Registry[Trainer] = Registry(
    "way of training",
    {
        "network": "pipeline.training.neural",
        "classical": "pipeline.training.classical",
    },
)


class Examples(NamedTuple):
    """The clips of a role, with their targets."""

    clip_ids: Sequence[str]
    targets: np.ndarray  # (clip, class); NaN = unknown
    weights: np.ndarray | None = None  # (clip,) float64, for balanced sampling; None = from the targets
    groups: Sequence[str] = ()  # name of each clip's group

    @classmethod
    def of(cls, targets: TargetTable, clip_ids: Sequence[str]) -> "Examples":
        """Return these clips of a development set, with its targets."""
        weights = sampling_weights(targets, clip_ids)
        return cls(clip_ids, class_targets(targets, clip_ids), weights, group_names(targets, clip_ids))


class TrainingData(NamedTuple):
    """Clips and vocabulary that a model is trained on."""

    inputs: Inputs
    training: Examples
    validation: Examples  # may be empty
    label_kind: LabelKind
    vocabulary: Vocabulary | None  # of tokens
    pretrained: Pretrained | None  # initial weights from masked-token pretraining
    classes: Sequence[str]
    copies: Sequence[CopiedFrames] = ()  # of the clips' frames, for networks whose settings read them
    frames: FrameInputs | None = None  # of the clips, for a network that trains on tokens of augmented frames


class Fitted(NamedTuple):
    """A trained model before it is written, with training statistics."""

    weights: Weights
    kept_epochs: Mapping[int, Weights]  # weights of the checkpoint ensemble, if any
    input_metadata: InputMetadata
    link: Link  # from logits to probabilities
    clips_seen: int  # repeats counted
    num_processes: int
    seconds: float
    epoch_timing: Sequence[Mapping[str, float]]


def way_of(kind: str) -> Literal["network", "classical"]:
    """Return the trainer of models of a kind, which also names their predictor."""
    return "classical" if kind in BASELINES else "network"
