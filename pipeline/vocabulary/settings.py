"""Settings common to all kinds of vocabulary, besides those of the kind itself."""

from typing import Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from pipeline.artifacts.vocabulary import NUM_SPECIAL_TOKENS
from pipeline.params import Params


class FeatureParams(Params):
    """What of a clip's frames one token codes."""

    deltas: NonNegativeInt  # frames on either side that a slope is fitted over, appended to the frame; 0 = no slopes
    stack: PositiveInt  # frames in a row that one token stands for; tokens have the frame rate over this
    pca: PositiveInt | None  # whitened dimensions that are left of the features; null = all, as they are


class BpeParams(Params):
    """Tokens that follow each other often become one."""

    num_tokens: int = Field(
        ge=3, le=2**16 - NUM_SPECIAL_TOKENS
    )  # tokens in all: those of all codebooks, and the merged ones


class CommonParams(Params):
    """The keys of all kinds; a kind adds `kind` and its own."""

    num_tokens: int = Field(ge=2, le=2**16 - NUM_SPECIAL_TOKENS)  # tokens in each codebook; ids are stored as uint16
    normalisation: Literal["standardise", "l2", "none"]
    features: FeatureParams
    bpe: BpeParams | None  # null = no merging
    sample_frames: PositiveInt  # at most this many frames are drawn; and again, in whole clips, to learn merges on
    iterations: PositiveInt  # of Lloyd's algorithm
    restarts: PositiveInt  # runs from other starting points, of which the best is kept
    exact: bool  # go on from the sample's codes over all training frames, for as many iterations
    seed: NonNegativeInt  # of the draw and of the starting points

    @property
    def groups(self) -> int:
        """How many equal groups of mel bands have their features side by side."""
        return 1

    @model_validator(mode="after")
    def _enough_frames(self) -> Self:
        least = self.num_tokens * self.features.stack
        if self.sample_frames < least:
            factor = f" x features.stack ({self.features.stack})" if self.features.stack > 1 else ""
            raise ValueError(
                f"expected sample_frames at least num_tokens ({self.num_tokens}){factor}, found {self.sample_frames}"
            )
        return self
