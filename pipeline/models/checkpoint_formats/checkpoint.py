"""Interface of checkpoint formats: opening published weights, and loading them into a network.

A format is one file and one line of `pipeline/models/registry.py`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pipeline.artifacts.model import PretrainedMetadata
from pipeline.errors import SonolexError
from pipeline.models.parts import Statistics
from pipeline.params import Params

if TYPE_CHECKING:
    from pipeline.models.network import Network, NetworkParams


class CheckpointParams(Params):
    """Section `pretrained` of a network."""

    kind: str
    source: str  # a file, a folder, or a published name, depending on the format
    digest: str | None  # first 32 hex digits of the SHA-256 of the weights file; null = not checked

    @property
    def has_statistics(self) -> bool:
        """Whether the weights include the mean and standard deviation of the frames that they were trained on."""
        return False

    @abstractmethod
    def require_network(self, network: "NetworkParams") -> None:
        """Raise ValueError, naming the keys, for a network that such weights do not fit."""


class Checkpoint(ABC):
    """Opened weights; they are checked against a network only in `load_into`."""

    Params: ClassVar[type[CheckpointParams]]
    where: str  # file, for messages
    digest: str  # of the weights file
    statistics: Statistics | None = None  # of the log-mel values in training

    @abstractmethod
    def __init__(self, params: CheckpointParams) -> None:
        """Open the weights. Raises SonolexError where they are missing, in another format, or changed."""

    @property
    def metadata(self) -> PretrainedMetadata:
        """Metadata that a trained model records of the weights, sufficient to build it without their files."""
        return PretrainedMetadata(digest=self.digest)

    def warn_of_front_end(self, front_end: Mapping[str, object]) -> None:  # noqa: B027 - most formats have nothing to warn of
        """Warn where the front end of a run differs from that of the weights."""

    @abstractmethod
    def load_into(self, network: "Network", params: "NetworkParams") -> None:
        """Load the weights into a new network of the section `params`. Raises SonolexError where they do not fit."""

    def require_digest(self, expected: str | None) -> None:
        """Raise SonolexError unless the file has the digest in the params, if there is one."""
        if expected not in (None, self.digest):
            raise SonolexError(
                f"pretrained.digest: {self.where}: expected {expected}, found {self.digest}; put the file back, or the "
                "digest found into params.yaml if it is meant, and its models are trained again"
            )
