"""Weights of another program, opened: its tensors by its own names, and what its files say of them.

A layout is a module with `Params` (what `start` says of it), `read_checkpoint(params)`, and two pure functions, each the
other's inverse: `to_layout(weights) -> tensors` and `from_layout(tensors, grid) -> weights`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

ToLayout = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
FromLayout = Callable[[Mapping[str, Tensor], tuple[int, int]], dict[str, Tensor]]


class Stated(NamedTuple):
    """A setting that a file states, and that our params must agree with."""

    where: str  # in which file, under which name
    value: Any


@dataclass(frozen=True)
class Checkpoint:
    """Opened weights. Nothing is checked yet against the model that they are for: `pipeline/models/start.py` does."""

    where: str  # file, for messages
    digest: str  # of the weights file
    tensors: dict[str, Tensor]  # what a model of this layout uses: without prefix, without dead heads
    picture: tuple[int, int] | None  # mel bands and frames that the position table is for; None = a square photograph
    stated: Mapping[str, Stated]  # key of our params, dotted -> what a file says
    statistics: tuple[float, float] | None  # mean and deviation of the log-mel values it was trained on
    norm_epsilons: tuple[float, float]  # of the encoder's layer norms, and of the head's
    positions: str  # name of the position table
    classes: str | None  # name of the matrix of classes, None where there is none
    to_layout: ToLayout
    from_layout: FromLayout

    @property
    def facts(self) -> dict[str, Any]:
        """What a trained model keeps of its start; enough to build it again without these files."""
        return {"digest": self.digest, "norm_epsilons": list(self.norm_epsilons)}
