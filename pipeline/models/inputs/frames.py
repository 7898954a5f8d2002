"""Input of log-mel frames: normalised frames (`pipeline/training/batches.py`) are the feature map."""

from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator, PositiveFloat, Tag
from torch import Tensor

from pipeline.artifacts.model import InputMetadata, Normalisation
from pipeline.models.base import NOT_NORMALISED, normalisation_unit
from pipeline.models.parts import Input, InputParams, Statistics
from pipeline.params import Params


class Constants(Params):
    """Mean and standard deviation that are given, as the published programs give them for each corpus."""

    mean: float  # of the log-mel values, in the front end's units
    std: PositiveFloat


def _form(value: object) -> str:
    """Return the tag of a normalisation's form: by name, or by constants."""
    return "constants" if isinstance(value, dict | Constants) else "name"


class FramesParams(InputParams):
    kind: Literal["frames"]
    # corpus: mean and std of the fold's training clips; clip: each clip's own; pretrained: those of the published weights
    normalisation: Annotated[
        Annotated[Literal["corpus", "clip", "none", "pretrained"], Tag("name")]
        | Annotated[Constants, Tag("constants")],
        Discriminator(_form),
    ]
    std_scale: PositiveFloat  # standard deviations per unit; 2 in AST

    @property
    def normalises_by_clip(self) -> bool:
        return self.normalisation == "clip"

    @property
    def normalises_as_pretrained(self) -> bool:
        return self.normalisation == "pretrained"

    @property
    def keeps_levels(self) -> bool:
        return self.normalisation == "none"

    def require_std_scale(self, expected: float) -> None:
        if self.std_scale != expected:
            raise ValueError(
                f"input.std_scale: expected {expected:g} with normalisation `pretrained`, as the weights were trained with, "
                f"found {self.std_scale:g}; set it so"
            )

    def fit_normalisation(
        self, corpus: Callable[[], Sequence[Statistics]], pretrained: Sequence[Statistics]
    ) -> Normalisation:
        if isinstance(self.normalisation, Constants):
            constants = self.normalisation
            return Normalisation(kind="constants", std_scale=self.std_scale, mean=constants.mean, std=constants.std)
        channels: Sequence[Statistics] = ()
        if self.normalisation == "corpus":
            channels = corpus()
        elif self.normalisation == "pretrained":
            assert pretrained  # checked by NetworkParams
            channels = pretrained
        mean, std = channels[0] if channels else (0.0, 1.0)
        fitted = Normalisation(kind=self.normalisation, std_scale=self.std_scale, mean=mean, std=std)
        return {**fitted, "channels": list(channels)} if len(channels) > 1 else fitted


class Frames(Input):
    """Input that returns normalised frames (B, T, mel) unchanged."""

    Params = FramesParams
    reads: ClassVar[Literal["frames"]] = "frames"

    def __init__(self, params: FramesParams, metadata: InputMetadata) -> None:
        super().__init__(params, metadata)
        self.num_features, self.num_channels = metadata["n_mels"], metadata.get("channels", 1)

    @property
    def zero(self) -> float:
        return self._normalised(0.0)

    @property
    def silence(self) -> float:
        return self._normalised(self.metadata["log_floor"])

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs

    def _normalised(self, value: float) -> float:
        """Return a value of the front end on the feature map's scale; NetworkParams excludes `clip` where this is used."""
        normalisation = self.metadata.get("normalisation", NOT_NORMALISED)
        if normalisation["kind"] in ("none", "clip"):
            return value
        return (value - normalisation["mean"]) / normalisation_unit(normalisation)
