"""Settings of vocabularies: those of all kinds, those of the kinds that cluster, and those of autoencoders."""

import math
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from pipeline.artifacts.vocabulary import NUM_SPECIAL_TOKENS
from pipeline.params import Params


class LdaParams(Params):
    """Linear discriminant analysis of frames in context, with the labels of the training clips."""

    dimensions: PositiveInt | None  # discriminants that are left; null = all there are, at most classes - 1
    context: NonNegativeInt  # frames on either side of a token's own that the projection reads, too
    shrinkage: float = Field(ge=0, le=1)  # of the covariance within classes, to one of equal variances; 0 = none


class HiddenStateParams(Params):
    """Hidden states of a network that the experiment trains, in place of the frames that it reads."""

    model: str = Field(min_length=1)  # of the experiment, by its name in tables: MODEL, or MODEL-VOCABULARY
    layer: str | None  # as `sonolex embed --layer` names it; null = the encoder's output


class FeatureParams(Params):
    """Features that one token codes."""

    hidden_states: HiddenStateParams | None  # what all below is made of; null = frames, as the front end computes them
    deltas: NonNegativeInt  # frames on either side that a slope is fitted over, appended to the frame; 0 = no slopes
    stack: PositiveInt  # frames in a row that one token stands for; tokens have the frame rate over this
    pca: PositiveInt | None  # whitened dimensions that are left of the features; null = all, as they are
    lda: LdaParams | None  # discriminants in place of the features; needs labels; null = none

    @property
    def context(self) -> int:
        """Frames on either side of a token's own whose features it has, too."""
        return self.lda.context if self.lda else 0

    @property
    def margin(self) -> int:
        """Frames on either side of a token's own that its features follow from."""
        return self.deltas + self.context

    @model_validator(mode="after")
    def _one_projection(self) -> Self:
        if self.pca is not None and self.lda is not None:
            raise ValueError(
                f"expected pca null with lda, which projects the features itself, found {self.pca}; set one of them to null"
            )
        return self


class BpeParams(Params):
    """Byte-pair encoding: tokens that follow each other often become one."""

    num_tokens: int = Field(
        ge=3, le=2**16 - NUM_SPECIAL_TOKENS
    )  # tokens in all: those of all codebooks, and the merged ones


class KindParams(Params):
    """The keys of all kinds, external tokens included, and what a kind is capable of; a kind narrows `kind`."""

    # Whether tokens are computed from frames, and stand for frames; false = they are read from a table.
    computable: ClassVar[bool] = True

    kind: str
    num_tokens: int = Field(ge=2, le=2**16 - NUM_SPECIAL_TOKENS)  # tokens in each codebook; ids are stored as uint16

    @property
    def additive(self) -> bool:
        """Whether tokens decode to the sum of their codes (`sum_codes`), which texture classifiers rely on."""
        return True

    @property
    def num_codebooks(self) -> int:
        """Tokens that each frame, or stack of frames, has before any merging."""
        return 1

    @property
    def has_vectors(self) -> bool:
        """Whether there is a vector of each token, which embeddings may start from."""
        return True

    @property
    def decodable(self) -> bool:
        """Whether tokens stand for frames, which can be rebuilt from them."""
        return self.computable

    @property
    def hidden_states(self) -> HiddenStateParams | None:
        """Hidden states whose tokens these are; None for tokens of frames."""
        return None


class CommonParams(KindParams):
    """The keys of all kinds whose tokens are computed from frames; a kind adds its own keys."""

    normalisation: Literal["standardise", "l2", "unit", "none"]
    features: FeatureParams
    bpe: BpeParams | None  # null = no merging
    sample_frames: PositiveInt  # at most this many frames are drawn; and again, in whole clips, to learn merges on
    seed: NonNegativeInt  # of the draw, and of what the kind draws

    @property
    def supervised(self) -> bool:
        """Whether it is fitted on the labels of training clips."""
        return self.features.lda is not None

    @property
    def decodable(self) -> bool:
        return self.hidden_states is None

    @property
    def hidden_states(self) -> HiddenStateParams | None:
        return self.features.hidden_states

    @property
    def groups(self) -> int:
        """Number of equal groups of mel bands whose features are side by side."""
        return 1

    @property
    def exact_iterations(self) -> int:
        """Most updates of Lloyd's algorithm over all training frames; 0 = the fit on the sample is final."""
        return 0


class ClusteringParams(CommonParams):
    """The keys of kinds whose codebooks are clustered by k-means."""

    iterations: PositiveInt  # of Lloyd's algorithm
    restarts: PositiveInt  # runs from other starting points, of which the best is kept
    exact: bool  # go on from the sample's codes over all training frames, for as many iterations

    @property
    def exact_iterations(self) -> int:
        return self.iterations if self.exact else 0

    @model_validator(mode="after")
    def _enough_frames(self) -> Self:
        least = self.num_tokens * self.features.stack
        if self.sample_frames < least:
            factor = f" x features.stack ({self.features.stack})" if self.features.stack > 1 else ""
            raise ValueError(
                f"expected sample_frames at least num_tokens ({self.num_tokens}){factor}, found {self.sample_frames}"
            )
        return self


class AutoencoderParams(CommonParams):
    """The keys of kinds whose tokens are those of a trained autoencoder: its layers, its quantiser, and its training."""

    quantiser: Literal["vq", "fsq", "residual"]
    codebooks: PositiveInt  # tokens a frame: several with residual, 1 with the others
    # Values of each dimension of a code with fsq; null with the others. The library bounds latent vectors by 0.1 % beyond
    # the outermost levels, which of more than 1,000 is half a level: they would be rounded to one that there is not.
    levels: list[Annotated[int, Field(ge=3, le=1000)]] | None
    codebook_dim: PositiveInt  # dimensions of a code vector with vq and residual; fsq has one for each of `levels`
    hidden: list[PositiveInt]  # units of each hidden layer of the encoder; the decoder has them in reverse order
    steps: PositiveInt  # of the optimiser
    batch_size: PositiveInt  # tokens a step
    learning_rate: PositiveFloat  # at the start; it falls to 0 on a cosine
    commitment: NonNegativeFloat  # weight of the commitment loss with vq and residual

    @property
    def additive(self) -> bool:
        return self.codebooks == 1

    @property
    def num_codebooks(self) -> int:
        return self.codebooks

    @model_validator(mode="after")
    def _consistent_quantiser(self) -> Self:
        if (self.quantiser == "residual") != (self.codebooks > 1):
            least = "at least 2" if self.quantiser == "residual" else "1"
            raise ValueError(f"expected codebooks {least} with quantiser {self.quantiser}, found {self.codebooks}")
        if (self.quantiser == "fsq") != bool(self.levels):
            expected = "a list such as [8, 6, 5]" if self.quantiser == "fsq" else "null"
            raise ValueError(f"expected levels {expected} with quantiser {self.quantiser}, found {self.levels}")
        return self

    @model_validator(mode="after")
    def _consistent_size(self) -> Self:
        if self.levels and self.num_tokens != math.prod(self.levels):
            raise ValueError(
                f"expected num_tokens {math.prod(self.levels)}, the product of levels {self.levels}, found {self.num_tokens}"
            )
        if not self.levels and self.batch_size < self.num_tokens:
            raise ValueError(
                f"expected batch_size at least num_tokens ({self.num_tokens}), since the codes start as centroids of the "
                f"first batch, found {self.batch_size}"
            )
        return self
