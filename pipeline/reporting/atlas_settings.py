"""The section `atlas`: how much of a vocabulary the atlas plays."""

from pydantic import Field, NonNegativeInt, PositiveFloat

from pipeline.params import Params


class AtlasParams(Params):
    """What can be heard is nearly the whole file, and bounded by these; what can be seen of a word costs next to nothing."""

    words: NonNegativeInt  # with sound, the most frequent ones; the others are shown without
    snippets: int = Field(ge=1, le=12)  # of a word, the nearest ones
    seconds: PositiveFloat = Field(le=2)  # of a snippet
    clips: NonNegativeInt  # played whole, beside what can be made of their words
