"""A bidirectional LSTM in the encoder's place (Hochreiter and Schmidhuber, 1997; Graves and Schmidhuber, 2005).

Padding does not reach it: clips of a batch are packed, so that each direction starts and ends with its clip. The
direction that reads backward begins at the clip's own last frame, and not in what stands behind it.

Conventions: B batch, N position, D width, of which the first half reads forward and the second backward. A mask (B, N) is
True from a clip's start to its end.
"""

from pydantic import Field, PositiveInt, field_validator
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from pipeline.models.heads import RecurrentPooling
from pipeline.models.stems import StemParams
from pipeline.params import Params


class RecurrentParams(Params):
    stem: StemParams
    width: PositiveInt  # of what comes in and of what goes out, half of it for each direction
    depth: PositiveInt  # layers
    dropout: float = Field(ge=0, lt=1)  # between layers and behind the last one
    pooling: RecurrentPooling

    @field_validator("width")
    @classmethod
    def _both_directions_are_as_wide(cls, width: int) -> int:
        if width % 2:
            raise ValueError("expected an even number, half of it for each direction")
        return width


class Recurrent(nn.Module):
    """Turn (B, N, D) positions into (B, N, D) contextual ones; behind a clip's end they are 0."""

    def __init__(self, params: RecurrentParams) -> None:
        super().__init__()
        between = params.dropout if params.depth > 1 else 0.0
        self.lstm = nn.LSTM(
            params.width, params.width // 2, params.depth, batch_first=True, bidirectional=True, dropout=between
        )
        self.dropout = nn.Dropout(params.dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            states, _ = self.lstm(x)
        else:
            packed = pack_padded_sequence(x, mask.sum(1).cpu(), batch_first=True, enforce_sorted=False)
            states, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=x.shape[1])
        out: Tensor = self.dropout(states)
        return out
