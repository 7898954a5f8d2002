"""Identity encoder: positions without context."""

from typing import Literal

from torch import Tensor

from pipeline.models.parts import Encoder, EncoderParams


class IdentityParams(EncoderParams):
    kind: Literal["identity"]


class Identity(Encoder):
    Params = IdentityParams

    def forward(self, x: Tensor, mask: Tensor | None, num_wanted: int | None = None) -> tuple[Tensor, Tensor | None]:
        return x, mask
