"""Contract of all models: the base of their sections of params.yaml, and the metadata of the data that they are built for.

Imports no torch: classical models start without it.
"""

from abc import abstractmethod
from typing import Literal, Protocol, TypedDict

from pipeline.params import Params

Reads = Literal["frames", "tokens"]

SMALLEST_STD = 1e-6  # of log-mel values; what varies less is constant


class Normalisation(TypedDict):
    """How log-mel frames are normalised: (x - mean) / (std_scale * std); `clip` takes each clip's own mean and std."""

    kind: str  # corpus, clip, none, or pretrained
    std_scale: float
    mean: float
    std: float


class PretrainedMetadata(TypedDict, total=False):
    """What a trained model records of the published weights that it started from."""

    digest: str  # of the weights file
    norm_epsilons: list[float]  # of the encoder's layer norms and of the head's; absent where they are the parts' own


class InputMetadata(TypedDict, total=False):
    """Metadata of the data that a model is built for; stored with it."""

    n_mels: int  # frames
    log_floor: float  # frames: the front end's smallest value
    normalisation: Normalisation  # networks
    vocabulary_size: int  # tokens
    num_codebooks: int  # tokens
    bands: list[list[int]]  # tokens: [first, last) feature of each codebook's codes
    pretrained: PretrainedMetadata  # networks that started from published weights
    masked_pretraining: dict[
        str, object
    ]  # networks that started from masked-token pretraining: metadata of its artifact


NOT_NORMALISED = Normalisation(kind="none", std_scale=1.0, mean=0.0, std=1.0)


def normalisation_unit(normalisation: Normalisation) -> float:
    """Return one unit of normalised frames in the front end's units."""
    return normalisation["std_scale"] * max(normalisation["std"], SMALLEST_STD)


class VocabularySection(Protocol):
    """What models ask of a section of `vocabularies`."""

    @property
    def kind(self) -> str: ...

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
        """Whether it attends to frames, so that its attention is a map over time and frequency."""
        return False

    def require_vocabulary(self, vocabulary: VocabularySection) -> None:
        """Raise ValueError for a vocabulary, given by its section, whose tokens the model cannot read."""
