"""Registry of the ways to train a model on one fold: networks by gradient descent, classical models in one fit.

A way is chosen by `way_of`, and code identity follows the chosen one alone: a mended schedule reruns no classical model.
Imports no torch: classical models are fitted without it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from pipeline.artifacts.clips import LabelKind
from pipeline.artifacts.pretrained import Pretrained
from pipeline.artifacts.vocabulary import Vocabulary
from pipeline.models.base import InputMetadata
from pipeline.models.registry import BASELINES
from pipeline.registry import Registry
from pipeline.training.inputs import Inputs

Weights = dict[str, np.ndarray]  # by name
Score = Callable[[np.ndarray, np.ndarray], dict[str, float]]  # of an epoch, from scores and targets (clip, class)

TRAINERS = Registry(
    "way of training",
    {
        "network": "pipeline.training.neural",
        "classical": "pipeline.training.classical",
    },
)


class Examples(NamedTuple):
    """The clips of a role, with their targets."""

    clip_ids: Sequence[str]
    targets: np.ndarray  # (clip, class)


class TrainingData(NamedTuple):
    """What a model is trained on."""

    inputs: Inputs
    training: Examples
    validation: Examples  # may be empty
    label_kind: LabelKind
    vocabulary: Vocabulary | None  # behind tokens
    pretrained: Pretrained | None  # weights from masked-token pretraining, to start from


class Fitted(NamedTuple):
    """A trained model before it is written, and what training took."""

    weights: Weights
    kept_epochs: Mapping[int, Weights]  # weights of the epochs that predict together, if any
    input_metadata: InputMetadata
    clips_seen: int  # repeats counted
    num_processes: int
    seconds: float
    epoch_timing: Sequence[Mapping[str, float]]


def way_of(kind: str) -> Literal["network", "classical"]:
    """Return the way to train models of a kind, and to predict by them."""
    return "classical" if kind in BASELINES else "network"
