"""Contract of published weights: a file in another program's format, opened, and how it gets into a network.

A format is one file and one line of `pipeline/models/registry.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pipeline.errors import SonolexError
from pipeline.models.base import PretrainedMetadata
from pipeline.models.parts import Statistics
from pipeline.params import Params

if TYPE_CHECKING:
    from pipeline.models.network import Network, NetworkParams


class CheckpointParams(Params):
    """Section `pretrained` of a network."""

    kind: str
    source: str  # a file, a folder, or a published name, as the format has it
    digest: str | None  # SHA-256 of the weights file, its first 32 digits; null takes whatever is there

    @property
    def has_statistics(self) -> bool:
        """Whether the weights say how the log-mel frames were normalised that they were trained on."""
        return False

    @abstractmethod
    def require_network(self, network: "NetworkParams") -> None:
        """Raise ValueError, which names the keys, for a network that such weights do not fit."""


class Checkpoint(ABC):
    """Opened weights. Nothing is checked against the network that they are for before `load_into`."""

    Params: ClassVar[type[CheckpointParams]]
    where: str  # file, for messages
    digest: str  # of the weights file
    statistics: Statistics | None = None  # of the log-mel values that it was trained on

    @abstractmethod
    def __init__(self, params: CheckpointParams) -> None:
        """Open the weights. Raises SonolexError where they are missing, in another format, or changed."""

    @property
    def metadata(self) -> PretrainedMetadata:
        """What a trained model records of the weights; enough to build it again without their files."""
        return PretrainedMetadata(digest=self.digest)

    def warn_of_front_end(self, front_end: Mapping[str, object]) -> None:  # noqa: B027 - most formats have nothing to warn of
        """Warn where the frames of a run are made in another way than those the weights were trained on."""

    @abstractmethod
    def load_into(self, network: "Network", params: "NetworkParams") -> None:
        """Load the weights into a fresh network of the section `params`. Raises SonolexError where they do not fit."""

    def require_digest(self, expected: str | None) -> None:
        """Raise SonolexError unless the file has the digest that params say, if they say any."""
        if expected not in (None, self.digest):
            raise SonolexError(
                f"pretrained.digest: {self.where}: expected {expected}, found {self.digest}; put the file back, or the "
                "digest found into params.yaml if it is meant, and its models are trained again"
            )
