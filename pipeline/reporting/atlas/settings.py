"""The section `atlas`: how much of a vocabulary the atlas plays, and the model whose logits are attributed to its tokens."""

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from pipeline.grid import ExperimentParams, require_listed
from pipeline.params import NameParam, Params


class AtlasParams(Params):
    """Bounds on the sounds in the page, which are nearly the whole file; pictures of tokens cost next to nothing."""

    tokens: NonNegativeInt  # with sound, the most frequent ones; the others are shown without
    snippets: int = Field(ge=1, le=12)  # of a token, the nearest ones
    seconds: PositiveFloat = Field(le=2)  # of a snippet
    clips: NonNegativeInt  # played whole, beside what can be made of their tokens
    attribution: list[NameParam] = Field(max_length=1)  # of experiment.token_models; [] = none
    attribution_clips: PositiveInt  # test clips of the fold that attributions are averaged over
    attribution_steps: PositiveInt = Field(le=1000)  # points of the integral of integrated gradients

    def check_against(self, experiment: ExperimentParams) -> None:
        """Raise ParamsError when the model of the attributions is not trained on every vocabulary of the experiment."""
        expected = "atlas.attribution: expected an entry of experiment.token_models"
        for name in self.attribution:
            require_listed(name, experiment.token_models, expected, "name one of these, or set atlas.attribution to []")
