"""Input of log-mel frames: normalised frames (`pipeline/training/batches.py`) are the feature map."""

from collections.abc import Callable
from typing import ClassVar, Literal

from pydantic import PositiveFloat, model_validator
from torch import Tensor

from pipeline.artifacts.model import InputMetadata, Normalisation
from pipeline.models.base import NOT_NORMALISED, normalisation_unit
from pipeline.models.parts import Input, InputParams, Statistics


class FramesParams(InputParams):
    kind: Literal["frames"]
    # corpus: mean and std of the fold's training clips; clip: each clip's own; pretrained: those of the published weights
    normalisation: Literal["corpus", "clip", "none", "pretrained"]
    std_scale: PositiveFloat  # standard deviations per unit; 2 in AST

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
            assert pretrained is not None  # checked by NetworkParams
            mean, std = pretrained
        else:
            mean, std = 0.0, 1.0
        return Normalisation(kind=self.normalisation, std_scale=self.std_scale, mean=mean, std=std)


class Frames(Input):
    """Input that returns normalised frames (B, T, mel) unchanged."""

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
        """Return a value of the front end on the feature map's scale; NetworkParams excludes `clip` where this is used."""
        normalisation = self._metadata.get("normalisation", NOT_NORMALISED)
        if normalisation["kind"] in ("none", "clip"):
            return value
        return (value - normalisation["mean"]) / normalisation_unit(normalisation)
