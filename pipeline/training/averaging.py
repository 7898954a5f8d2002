"""Weight averaging over steps or epochs (Polyak and Juditsky, 1992); the mean is evaluated and stored.

`ema` is an exponential moving average over steps. `last` and `epochs` are the uniform mean of the weights at the end of some
epochs (Izmailov et al., 2018, arXiv 1803.05407), as in AST and PSLA; each epoch counts once (PSLA counted the first twice).
Before its first epoch, the mean equals the weights.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import nn

from pipeline.params import Params


class NoAverageParams(Params):
    kind: Literal["none"]


class EmaParams(Params):
    kind: Literal["ema"]
    decay: float = Field(ge=0, lt=1)  # per step


class LastParams(Params):
    kind: Literal["last"]
    epochs: PositiveInt  # last ones of the run


class EpochsParams(Params):
    kind: Literal["epochs"]
    first: PositiveInt  # counted from 1
    last: PositiveInt  # included

    @model_validator(mode="after")
    def _in_order(self) -> "EpochsParams":
        if self.first > self.last:
            raise ValueError(f"expected first <= last, found first {self.first} and last {self.last}")
        return self


AverageParams = Annotated[
    NoAverageParams | EmaParams | LastParams | EpochsParams,
    Field(discriminator="kind"),
]


def averaged_epochs(params: AverageParams, num_epochs: int) -> range:
    """Return the epochs, counted from 1, at whose end weights are averaged; empty for the other kinds."""
    if isinstance(params, LastParams):
        return range(num_epochs - params.epochs + 1, num_epochs + 1)
    if isinstance(params, EpochsParams):
        return range(params.first, params.last + 1)
    return range(0)


class WeightAverage:
    """Mean of every floating-point entry of a model's state, batch-norm statistics included.

    At the end of every epoch, `values` is the state that would be stored if it were the last; `count` is the number of
    averaged states. Both go into checkpoints.
    """

    def __init__(self, model: nn.Module, params: AverageParams, num_epochs: int) -> None:
        self.count = 0
        self._decay = params.decay if isinstance(params, EmaParams) else None
        self._epochs = averaged_epochs(params, num_epochs)
        self._live = {name: t for name, t in model.state_dict().items() if t.is_floating_point()}
        self.values = {name: t.clone() for name, t in self._live.items()}

    def after_step(self) -> None:
        """Update the exponential mean after a step; its decay is smaller at first, to forget the initial weights."""
        if self._decay is not None:
            self.count += 1
            self._move(1 - min(self._decay, self.count / (self.count + 9)))

    def after_epoch(self, epoch: int) -> None:
        """Update the uniform mean at the end of an epoch, counted from 1."""
        if self._decay is not None:
            return
        if epoch in self._epochs:
            self.count += 1
            self._move(1 / self.count)
        elif not self.count:
            self._move(1.0)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights with their mean; a second call reverts the first."""
        for name, live in self._live.items():
            mean = self.values[name].clone()
            self.values[name].copy_(live)
            live.copy_(mean)

    @torch.no_grad()
    def _move(self, weight: float) -> None:
        """Move the mean towards the weights by this fraction of their distance."""
        torch._foreach_lerp_(list(self.values.values()), list(self._live.values()), weight)
