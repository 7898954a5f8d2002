"""Interface of classical models, which are fitted without epochs.

A classical model is one file with one class, and one line of `pipeline/models/registry.py`. `fit` may use scikit-learn;
`predict` uses only the arrays that `fit` returned, since weights are stored as safetensors and not as a pickle.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple, overload

import numpy as np

from pipeline.artifacts.clips import LabelKind
from pipeline.artifacts.model import InputMetadata, Reads
from pipeline.artifacts.spectrogram import FrontEndMetadata
from pipeline.artifacts.vocabulary import Vocabulary
from pipeline.models.base import ModelParams

# Logit of a class that no training clip has: sigmoid and softmax both map it to about 0. Its negative is the logit of a
# class that all training clips have.
UNSEEN_LOGIT = -30.0

Weights = dict[str, np.ndarray]  # by name


class Setting(NamedTuple):
    """Arguments of `fit` other than training clips and their targets."""

    input_metadata: InputMetadata
    front_end: FrontEndMetadata  # of the front end behind the frames or tokens
    label_kind: LabelKind  # "one" or "many" labels per clip
    seed: int
    vocabulary: Vocabulary | None = None  # of tokens


class LazyClips(Sequence[np.ndarray]):
    """Arrays of clips that are read or computed whenever they are taken, where all together outgrow the memory."""

    def __init__(self, count: int, take: Callable[[int], np.ndarray]) -> None:
        self._count, self._take = count, take

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, place: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, place: slice) -> "LazyClips": ...
    def __getitem__(self, place: int | slice) -> "np.ndarray | LazyClips":
        places = range(self._count)[place]
        if isinstance(places, int):
            return self._take(places)
        return LazyClips(len(places), lambda number: self._take(places[number]))


class Baseline(ABC):
    """A classical model of the section `params`."""

    Params: ClassVar[type[ModelParams]]
    params: ModelParams

    def __init__(self, params: ModelParams) -> None:
        self.params = params

    @property
    def reads(self) -> Reads:
        """The input: frames (frame, mel) float32, or tokens (codebook, frame) uint16, per clip."""
        return self.params.reads

    @abstractmethod
    def fit(self, inputs: Sequence[np.ndarray], targets: np.ndarray, setting: Setting) -> Weights:
        """Fit on training clips, one array each, with `targets` (clip, class) of 0, 1 and NaN (unknown).

        All randomness comes from the seed. Every use of an item of `inputs` may read it anew: an array that is kept fills
        memory that the caller does not count.
        """

    @abstractmethod
    def predict(self, weights: Weights, inputs: Sequence[np.ndarray]) -> np.ndarray:
        """Return logits (clip, class) float32."""
