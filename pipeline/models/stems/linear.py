"""Linear stem: each frame is projected to the encoder's width."""

from typing import Literal

from torch import Tensor, nn

from pipeline.models.parts import Input, Stem, StemParams
from pipeline.models.positions import SinusoidalPositions


class LinearParams(StemParams):
    kind: Literal["linear"]


class Linear(Stem):
    Params = LinearParams

    def __init__(self, params: LinearParams, source: Input, width: int | None) -> None:
        super().__init__(params, source, width)
        assert width is not None  # checked by NetworkParams, since frames are projected
        self.num_features = width
        self.project = nn.Linear(source.num_features, width)
        self.positions = SinusoidalPositions(width)

    def forward(self, features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        positions = self.project(features)
        return positions + self.positions(positions.shape[1]), mask
