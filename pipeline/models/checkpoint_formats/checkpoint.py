"""Interface of checkpoint formats: opening weights, and loading them into a network; and their common warnings.

A format is one file and one line of `pipeline/models/registry.py`.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from pipeline.artifacts.model import Normalisation, PretrainedMetadata
from pipeline.artifacts.spectrogram import FrontEndMetadata
from pipeline.errors import SonolexError
from pipeline.models.parts import Statistics
from pipeline.params import Params

if TYPE_CHECKING:
    from pipeline.models.network import Network, NetworkParams


log = logging.getLogger(__name__)

# Front-end settings of all published ASTs and PSLAs: Kaldi's filterbank.
_FRONT_END = {"front_end": "kaldi", "sample_rate": 16000, "win_length": 400, "hop_length": 160}


class CheckpointParams(Params):
    """Section `pretrained` of a network."""

    kind: str
    source: str  # a file, a folder, or a published name, depending on the format
    digest: str | None  # first 32 hex digits of the SHA-256 of the weights file; null = not checked

    highest_rate: ClassVar[float]  # peak learning rate at which their authors trained on from them, at most
    std_scale: ClassVar[float | None] = 1.0  # standard deviations per unit of their frames; None = only the weights say
    log_mel_only: ClassVar[bool] = True  # their frames are log-mel frames in one channel

    @property
    def has_statistics(self) -> bool:
        """Whether the weights include the mean and standard deviation of the frames that they were trained on."""
        return False

    def rate_remark(self, learning_rate: float) -> str | None:
        """Return a remark on a peak learning rate above all published ones, by which weights are forgotten; else None."""
        if learning_rate <= self.highest_rate:
            return None
        return (
            f"train.learning_rate {learning_rate:g} is above {self.highest_rate:g}, the highest that authors took to train "
            f"weights of kind {self.kind} further: they are soon lost; set it to {self.highest_rate:g} or less"
        )

    def require_source(self) -> None:
        """Raise SonolexError where `source` is neither a file here nor a name of published weights; opens no file."""

    @property
    def form(self) -> PretrainedMetadata:
        """What a network has to be told to have the form of the weights, as far as params do not say it.

        Raises SonolexError where the files that say it are missing.
        """
        return PretrainedMetadata()

    @abstractmethod
    def require_network(self, network: "NetworkParams") -> None:
        """Raise ValueError, naming the keys, for a network that such weights do not fit."""


class Checkpoint(ABC):
    """Opened weights; they are checked against a network only in `load_into`."""

    Params: ClassVar[type[CheckpointParams]]
    where: str  # file, for messages
    digest: str  # of the weights file
    statistics: Sequence[Statistics] = ()  # of the values of each channel in training; none where they are not known

    @abstractmethod
    def __init__(self, params: CheckpointParams) -> None:
        """Open the weights. Raises SonolexError where they are missing, in another format, or changed."""

    @property
    def metadata(self) -> PretrainedMetadata:
        """Metadata that a trained model records of the weights, sufficient to build it without their files."""
        return PretrainedMetadata(digest=self.digest)

    def warn_of_front_end(self, front_end: Mapping[str, object]) -> None:  # noqa: B027 - most formats have nothing to warn of
        """Warn where the front end of a run differs from that of the weights."""

    def require_run(  # noqa: B027 - most formats say little of their training
        self, params: "NetworkParams", front_end: FrontEndMetadata, vocabulary: str | None
    ) -> None:
        """Raise SonolexError for a run that reads other frames, or tokens, than the weights were trained on.

        `vocabulary` is the digest of the one behind tokens, empty for frames, None where it is not known yet.
        """

    def require_normalisation(self, normalisation: Normalisation) -> None:  # noqa: B027 - as above
        """Raise SonolexError for a normalisation of another form than that of the weights."""

    def choose_classes(self, classes: Sequence[str]) -> None:  # noqa: B027 - most formats have no names of classes
        """Keep the classifier's rows of a corpus's classes alone, where the params say so. Raises SonolexError."""

    @abstractmethod
    def load_into(self, network: "Network", params: "NetworkParams") -> None:
        """Load the weights into a new network of the section `params`. Raises SonolexError where they do not fit."""

    @property
    def num_classes(self) -> int | None:
        """Number of classes of the weights' classifier; None where there is none."""
        return None

    def require_digest(self, expected: str | None) -> None:
        """Raise SonolexError unless the file has the digest in the params, if there is one."""
        if expected not in (None, self.digest):
            raise SonolexError(
                f"pretrained.digest: {self.where}: expected {expected}, found {self.digest}; put the file back, or the "
                "digest found into params.yaml if it is meant, and its models are trained again"
            )


def warn_of_frames(front_end: Mapping[str, object], n_mels: int, where: str, trained: str, recipe: str) -> None:
    """Warn of each difference between the frames of a run and those that weights were trained on."""
    for difference in front_end_differences(front_end, n_mels):
        log.warning("pretrained: %s: trained on frames of %s: %s; see %s", where, trained, difference, recipe)


def front_end_differences(front_end: Mapping[str, object], n_mels: int) -> list[str]:
    """Return the differences between the frames of a run and those of published ASTs and PSLAs, for messages."""
    differences = []
    for key, expected in (_FRONT_END | {"n_mels": n_mels}).items():
        if front_end.get(key, expected) != expected:
            differences.append(f"{key}: expected {expected}, found {front_end[key]}")
    return differences


def warn_of_new_head(where: str, found: int, expected: int) -> None:
    """Warn that the head for `found` classes does not fit a corpus of `expected`."""
    log.warning(
        "pretrained: %s: its head is for %d classes, this corpus has %d: the head keeps its random weights",
        where, found, expected,
    )  # fmt: skip
