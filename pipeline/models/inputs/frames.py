"""Input of log-mel frames, which is the feature map as it is: normalisation has been done by `pipeline/training`."""

from collections.abc import Callable
from typing import ClassVar, Literal

from pydantic import PositiveFloat, model_validator
from torch import Tensor

from pipeline.models.base import NOT_NORMALISED, InputMetadata, Normalisation, normalisation_unit
from pipeline.models.parts import Input, InputParams, Statistics


class FramesParams(InputParams):
    kind: Literal["frames"]
    # corpus: mean and std of the fold's training clips; clip: each clip's own; pretrained: those of the published weights
    normalisation: Literal["corpus", "clip", "none", "pretrained"]
    std_scale: PositiveFloat  # how many standard deviations make one unit; AST takes 2

    @property
    def normalises_by_clip(self) -> bool:
        return self.normalisation == "clip"

    @property
    def normalises_as_pretrained(self) -> bool:
        return self.normalisation == "pretrained"

    @model_validator(mode="after")
    def _pretrained_statistics_are_scaled_as_in_ast(self) -> "FramesParams":
        if self.normalisation == "pretrained" and self.std_scale != 2:
            raise ValueError(f"std_scale {self.std_scale} must be 2 with normalisation `pretrained`, as in AST")
        return self

    def fit_normalisation(self, corpus: Callable[[], Statistics], pretrained: Statistics | None) -> Normalisation:
        if self.normalisation == "corpus":
            mean, std = corpus()
        elif self.normalisation == "pretrained":
            assert pretrained is not None  # NetworkParams has seen to it
            mean, std = pretrained
        else:
            mean, std = 0.0, 1.0
        return Normalisation(kind=self.normalisation, std_scale=self.std_scale, mean=mean, std=std)


class Frames(Input):
    """Hands normalised frames (B, T, mel) on."""

    Params = FramesParams
    reads: ClassVar[Literal["frames"]] = "frames"

    def __init__(self, params: FramesParams, metadata: InputMetadata) -> None:
        super().__init__(params, metadata)
        self.num_features = metadata["n_mels"]
        self._metadata = metadata

    @property
    def zero(self) -> float:
        return self._normalised(0.0)

    @property
    def silence(self) -> float:
        return self._normalised(self._metadata["log_floor"])

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs

    def _normalised(self, value: float) -> float:
        """Return a value of the front end as the feature map has it; NetworkParams allows no `clip` where this is asked."""
        normalisation = self._metadata.get("normalisation", NOT_NORMALISED)
        if normalisation["kind"] in ("none", "clip"):
            return value
        return (value - normalisation["mean"]) / normalisation_unit(normalisation)
