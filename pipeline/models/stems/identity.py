"""Stems without weights: each frame is a position, without position embeddings."""

from typing import Literal

from pydantic import PositiveInt
from torch import Tensor, nn

from pipeline.models.parts import Input, Stem, StemParams, fit_frames


class IdentityParams(StemParams):
    kind: Literal["identity"]


class FixedLengthParams(StemParams):
    kind: Literal["fixed_length"]
    frames: PositiveInt  # of a clip, from its start
    fill: Literal[
        "silence", "zero"
    ]  # of shorter clips: the front end's floor, or 0 in its units, as AST and PSLA have it

    @property
    def pads(self) -> bool:
        return True

    @property
    def time_stride(self) -> int | None:
        return None


class Identity(Stem):
    """Stem that returns the feature map unchanged, for encoders that read it as an image or frame by frame."""

    Params = IdentityParams
    projects = False

    def __init__(self, params: IdentityParams, source: Input, width: int | None) -> None:
        super().__init__(params, source, width)
        self.num_features, self.num_channels = source.num_features, source.num_channels

    def forward(self, features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return features, mask


class FixedLength(Stem):
    """Stem that crops longer clips, and pads shorter ones with silence (the front end's floor), or with 0 in its units."""

    Params = FixedLengthParams
    projects = False

    def __init__(self, params: FixedLengthParams, source: Input, width: int | None) -> None:
        super().__init__(params, source, width)
        self.num_features = source.num_features
        self.max_frames = self.num_positions = params.frames
        self.frames, self.fill = params.frames, source.silence if params.fill == "silence" else source.zero

    def forward(self, features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return fit_frames(features, mask, self.frames, self.fill), None

    def real_time_steps(self, mask: Tensor, num_time_steps: int) -> Tensor:
        real = mask[:, :num_time_steps]
        missing = num_time_steps - real.shape[1]
        return real if not missing else nn.functional.pad(real, (0, missing))
