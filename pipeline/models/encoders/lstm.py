"""Bidirectional LSTM encoder (Hochreiter and Schmidhuber, 1997; Graves and Schmidhuber, 2005).

Padding has no effect: it comes after the clip in the forward direction, and the backward direction reads every clip reversed
within its own length. Packed sequences would do the same; PyTorch's take nearly seven times as long to train on a CPU
(LOG.md, 2026-11-22).

Conventions: B batch, N position, D width, the first half forward states, the second half backward states. A mask (B, N) is
True from a clip's start to its end.
"""

from typing import Literal

import torch
from pydantic import Field, PositiveInt, field_validator
from torch import Tensor, nn

from pipeline.models.parts import Encoder, EncoderParams, Stem


class LstmParams(EncoderParams):
    kind: Literal["lstm"]
    input_size: (
        PositiveInt | Literal["stem"] | None
    )  # width of its input; stem = of a stem without projection; null = width
    width: PositiveInt  # of the output, half of it for each direction
    depth: PositiveInt  # layers
    dropout: float = Field(ge=0, lt=1)  # between layers and after the last one

    @property
    def input_width(self) -> int | None:
        return None if self.input_size == "stem" else self.input_size or self.width

    @field_validator("width")
    @classmethod
    def _both_directions_are_as_wide(cls, width: int) -> int:
        if width % 2:
            raise ValueError("expected an even number, half of it for each direction")
        return width


class Lstm(Encoder):
    """Encoder whose states are 0 after a clip's end."""

    Params = LstmParams
    has_directions = supports_pretraining = True

    def __init__(self, params: LstmParams, stem: Stem) -> None:
        super().__init__(params, stem)
        self.num_features = params.width
        sizes = [stem.num_features] + [params.width] * (params.depth - 1)
        self.forwards = nn.ModuleList(nn.LSTM(size, params.width // 2, batch_first=True) for size in sizes)
        self.backwards = nn.ModuleList(nn.LSTM(size, params.width // 2, batch_first=True) for size in sizes)
        self.dropout = nn.Dropout(params.dropout)

    def forward(self, x: Tensor, mask: Tensor | None, num_wanted: int | None = None) -> tuple[Tensor, Tensor | None]:
        places = _turned_places(mask, x.shape[1], x.device)
        with torch.autocast("cpu", enabled=False):  # oneDNN cannot train an LSTM in half precision; cuDNN can
            x = x.float()
            for ahead, back in zip(self.forwards, self.backwards, strict=True):
                behind = _turn(back(_turn(x, places))[0], places)
                x = self.dropout(torch.cat([ahead(x)[0], behind], dim=2))
        return x if mask is None else x.where(mask[:, :, None], 0), mask


def _turned_places(mask: Tensor | None, length: int, device: torch.device) -> Tensor:
    """Return the position order that reverses each clip within its length, (B, N) or (1, N); padding stays in place."""
    places = torch.arange(length, device=device)[None]
    if mask is None:
        return places.flip(1)
    return (mask.sum(1, keepdim=True) - 1 - places).where(mask, places)


def _turn(x: Tensor, places: Tensor) -> Tensor:
    """Return (B, N, D) in the order of `places`."""
    return x.gather(1, places[:, :, None].expand_as(x))
