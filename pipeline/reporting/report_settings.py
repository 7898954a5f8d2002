"""The section `report`."""

from typing import Self

from pydantic import Field, NonNegativeInt, model_validator

from pipeline.errors import ParamsError
from pipeline.grid import ExperimentParams, require_listed
from pipeline.params import Params


class ReferenceParams(Params):
    """A model on frames that a model on tokens is compared with, instead of the one that differs in its input alone."""

    tokens: str  # of experiment.token_models or pretrained_models
    frames: str  # of experiment.frame_models


class ReportParams(Params):
    """The section `report`: headline models, the number of clips shown, and what is compared."""

    headline: list[str] = Field(min_length=1, max_length=2)  # models in metrics.json, before the first ensemble
    examples: NonNegativeInt  # clips shown with audio, pictures and predictions
    worst: NonNegativeInt  # mistakes shown likewise, the most confident first
    attention: list[str]  # of experiment.frame_models; the clips shown get the attention or Grad-CAM map of each
    references: list[ReferenceParams]  # [] = each model on tokens is compared with the same model on frames

    @model_validator(mode="after")
    def _check(self) -> Self:
        compared = [reference.tokens for reference in self.references]
        for key, names in (("headline", self.headline), ("attention", self.attention), ("references", compared)):
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                raise ValueError(f"{key}: expected different models, found {', '.join(repeated)} twice")
        return self

    def check_against(self, experiment: ExperimentParams) -> None:
        """Raise ParamsError when a model of the headline, with attention or of a comparison is not in the experiment."""
        for name in self.headline:
            if name not in experiment.models:
                known = ", ".join(experiment.models)
                raise ParamsError(f"report.headline: expected models of experiment ({known}), found {name!r}")
        expected = "report.attention: expected entries of experiment.frame_models"
        for name in self.attention:
            require_listed(name, experiment.frame_models, expected, "take it out, or set report.attention to []")
        for own in self.references:
            compared = (
                ("tokens", "token_models", own.tokens, experiment.token_entries),
                ("frames", "frame_models", own.frames, experiment.frame_models),
            )
            for key, where, name, names in compared:
                require_listed(
                    name,
                    names,
                    f"report.references: {key}: expected an entry of experiment.{where}",
                    "take the comparison out, or set report.references to []",
                )
