"""Interface of all models: the base of their sections of params.yaml, and metadata of their input data.

Imports no torch, which classical models do not need.
"""

from abc import abstractmethod
from typing import Literal, Protocol, TypedDict

from pipeline.params import Params

Reads = Literal["frames", "tokens"]

SMALLEST_STD = 1e-6  # of log-mel values; below it values count as constant


class Normalisation(TypedDict):
    """Normalisation of log-mel frames: (x - mean) / (std_scale * std); `clip` uses each clip's own mean and std."""

    kind: str  # corpus, clip, none, or pretrained
    std_scale: float
    mean: float
    std: float


class PretrainedMetadata(TypedDict, total=False):
    """Record, in a trained model, of the published weights that it was initialised from."""

    digest: str  # of the weights file
    norm_epsilons: list[float]  # of the encoder's layer norms and of the head's; absent where the defaults hold


class InputMetadata(TypedDict, total=False):
    """Metadata of the data that a model is built for; stored with it."""

    n_mels: int  # frames
    log_floor: float  # frames: the front end's smallest value
    normalisation: Normalisation  # networks
    vocabulary_size: int  # tokens
    num_codebooks: int  # tokens
    bands: list[list[int]]  # tokens: [first, last) feature of each codebook's codes
    pretrained: PretrainedMetadata  # networks initialised from published weights
    masked_pretraining: dict[
        str, object
    ]  # networks initialised from masked-token pretraining: metadata of its artifact


NOT_NORMALISED = Normalisation(kind="none", std_scale=1.0, mean=0.0, std=1.0)


def normalisation_unit(normalisation: Normalisation) -> float:
    """Return the size of one unit of normalised frames, in the front end's units."""
    return normalisation["std_scale"] * max(normalisation["std"], SMALLEST_STD)


class VocabularySection(Protocol):
    """Fields of a section of `vocabularies` that models check."""

    @property
    def kind(self) -> str: ...

    @property
    def additive(self) -> bool: ...

    @property
    def num_codebooks(self) -> int: ...

    @property
    def normalisation(self) -> str: ...

    @property
    def bpe(self) -> object | None: ...


class ModelParams(Params):
    """Base of every section of `models`."""

    kind: str

    @property
    @abstractmethod
    def reads(self) -> Reads:
        """The artifact that the model reads: log-mel frames or tokens."""

    @property
    def supports_pretraining(self) -> bool:
        """Whether masked-token pretraining can train it first (`experiment.pretrained_models`)."""
        return False

    @property
    def has_attention_maps(self) -> bool:
        """Whether its attention is a map over time and frequency."""
        return False

    def require_vocabulary(self, vocabulary: VocabularySection) -> None:
        """Raise ValueError for a vocabulary, given by its section, whose tokens the model cannot read."""
