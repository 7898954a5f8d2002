"""The section `atlas`: how much of a vocabulary the atlas plays."""

from pydantic import Field, NonNegativeInt, PositiveFloat

from pipeline.params import Params


class AtlasParams(Params):
    """Bounds on the sounds in the page, which are nearly the whole file; pictures of tokens cost next to nothing."""

    tokens: NonNegativeInt  # with sound, the most frequent ones; the others are shown without
    snippets: int = Field(ge=1, le=12)  # of a token, the nearest ones
    seconds: PositiveFloat = Field(le=2)  # of a snippet
    clips: NonNegativeInt  # played whole, beside what can be made of their tokens
