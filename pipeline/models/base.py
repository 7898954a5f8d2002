"""Interface of all models: the base of their sections of params.yaml.

Imports no torch, which classical models do not need.
"""

from abc import abstractmethod
from typing import Literal, Protocol, TypeAlias

from pipeline.artifacts.model import Normalisation, Reads
from pipeline.params import Params

Explanation: TypeAlias = Literal["attention", "grad_cam"]  # see pipeline/evaluation/explanation.py

SMALLEST_STD = 1e-6  # of log-mel values; below it values count as constant

NOT_NORMALISED = Normalisation(kind="none", std_scale=1.0, mean=0.0, std=1.0)


def normalisation_unit(normalisation: Normalisation) -> float:
    """Return the size of one unit of normalised frames, in the front end's units."""
    return normalisation["std_scale"] * max(normalisation["std"], SMALLEST_STD)


def by_channel(normalisation: Normalisation, num_channels: int) -> list[Normalisation]:
    """Return the normalisation of each channel."""
    kind, std_scale = normalisation["kind"], normalisation["std_scale"]
    statistics = normalisation.get("channels") or [(normalisation["mean"], normalisation["std"])] * num_channels
    return [Normalisation(kind=kind, std_scale=std_scale, mean=mean, std=std) for mean, std in statistics]


class VocabularySection(Protocol):
    """Fields of a section of `vocabularies` that models check."""

    @property
    def kind(self) -> str: ...

    @property
    def additive(self) -> bool: ...

    @property
    def has_vectors(self) -> bool: ...

    @property
    def num_codebooks(self) -> int: ...

    @property
    def normalisation(self) -> str: ...

    @property
    def bpe(self) -> object | None: ...

    @property
    def supervised(self) -> bool: ...

    @property
    def computable(self) -> bool: ...

    @property
    def decodable(self) -> bool: ...

    @property
    def hidden_states(self) -> "HiddenStateSection | None": ...


class HiddenStateSection(Protocol):
    """Fields of a section `features.hidden_states` that the grid checks."""

    @property
    def model(self) -> str: ...

    @property
    def layer(self) -> str | None: ...


class FrontEndValues(Protocol):
    """Fields of the section `spectrogram.front_end` that models check."""

    @property
    def kind(self) -> str: ...

    @property
    def is_log_mel(self) -> bool: ...

    @property
    def has_samples(self) -> bool: ...


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
    def begins_with_weights(self) -> bool:
        """Whether it begins with published weights, or with those of another model."""
        return False

    @property
    def attributes_tokens(self) -> bool:
        """Whether its logits can be attributed to the tokens that it reads (`pipeline/evaluation/token_attribution.py`)."""
        return False

    @property
    def explanation(self) -> Explanation | None:
        """How a map over time and frequency shows what it looks at; None where there is none."""
        return None

    @property
    def time_stride(self) -> int | None:
        """Frames, or tokens, from one position of a network to the next; None where there are no positions along time."""
        return None

    def rate_remark(self, learning_rate: float) -> str | None:
        """Return a remark on a peak learning rate that is too high for its pretrained weights; None where it is not."""
        return None

    def require_front_end(self, front_end: FrontEndValues) -> None:
        """Raise ValueError for a front end, given by its section, whose frames the model cannot read."""
        if self.reads == "frames" and front_end.has_samples:
            raise ValueError(
                "they are samples of the waveform, which networks with encoder.kind waveform_encoder alone read; use one, "
                "or the front end kaldi"
            )

    @property
    def windows(self) -> tuple[float, float] | None:
        """Length and hop, in seconds, of the windows that it cuts clips into; None where it reads them whole."""
        return None

    def require_vocabulary(self, vocabulary: VocabularySection) -> None:
        """Raise ValueError for a vocabulary, given by its section, whose tokens the model cannot read."""

    def require_room(self, num_clips: int) -> None:
        """Raise ParamsError for more training clips than the model can be fitted on in bounded memory."""
