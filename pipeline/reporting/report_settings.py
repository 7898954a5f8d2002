"""The section `report`."""

from typing import Self

from pydantic import Field, NonNegativeInt, model_validator

from pipeline.errors import ParamsError
from pipeline.grid import ExperimentParams
from pipeline.params import Params


class ReportParams(Params):
    """The section `report`: headline models, and the number of clips shown."""

    headline: list[str] = Field(min_length=1, max_length=2)  # models in metrics.json, before the first ensemble
    examples: NonNegativeInt  # clips shown with audio, pictures and predictions
    worst: NonNegativeInt  # mistakes shown likewise, the most confident first
    attention: list[str]  # of experiment.frame_models; the clips shown get the attention or Grad-CAM map of each

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key, names in (("headline", self.headline), ("attention", self.attention)):
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                raise ValueError(f"{key}: expected different models, found {', '.join(repeated)} twice")
        return self

    def check_against(self, experiment: ExperimentParams) -> None:
        """Raise ParamsError when a model of the headline, or one with attention, is not in the experiment."""
        for name in self.headline:
            if name not in experiment.models:
                known = ", ".join(experiment.models)
                raise ParamsError(f"report.headline: expected models of experiment ({known}), found {name!r}")
        for name in self.attention:
            if name not in experiment.frame_models:
                known = ", ".join(experiment.frame_models) or "none"
                raise ParamsError(
                    f"report.attention: expected entries of experiment.frame_models ({known}), found {name!r}; take it out, "
                    "or set report.attention to []"
                )
