"""Learning-rate range test: the loss while the rate rises geometrically, step by step (Smith, 2017, arXiv 1506.01186).

Only training clips are read. The loss is smoothed by an exponential mean without bias; the test ends where it is several
times its lowest value, or not finite. The suggestion is a tenth of the rate of the lowest loss, as in fastai: there the loss
still falls steadily, and from the lowest loss on training is unstable.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.models.network import Network
from pipeline.seeding import named_seed
from pipeline.training import sampling
from pipeline.training.batches import StoredBatch
from pipeline.training.classification import Classification
from pipeline.training.distributed import DistributedContext
from pipeline.training.freezing import Freezing
from pipeline.training.loop import cut
from pipeline.training.settings import TrainParams
from pipeline.training.step import Learner, NotFiniteError
from pipeline.training.validation import Examples

_SMOOTHING = 0.95  # of the mean of the losses, per step
_DIVERGED = 4.0  # times the lowest smoothed loss
_FEWEST = 10  # steps before the test may end, or a rate be suggested
_BELOW_LOWEST = 10.0  # how far the suggested rate is below that of the lowest loss


class RatePoint(NamedTuple):
    """A step of the test."""

    rate: float
    loss: float
    smoothed: float


class Range(NamedTuple):
    """Rates of a range test, from the first step's to the last's."""

    lowest: float
    highest: float
    steps: int

    def rates(self) -> list[float]:
        """Return the rate of each step, a geometric series."""
        ratio = (self.highest / self.lowest) ** (1 / max(1, self.steps - 1))
        return [self.lowest * ratio**step for step in range(self.steps)]


def run_range_test(
    model: Network,
    params: TrainParams,
    task: Classification,
    examples: Examples,
    *,
    rates: Range,
    seed: int,
    context: DistributedContext,
) -> list[RatePoint]:
    """Train `model` in place for a step at each rate, in the first stage of freezing, and return the losses.

    The last point is that at which the test ended. Optimiser, augmentation and factors on the rate are those of `params`.
    """
    learner = Learner(model, params, task, context)
    Freezing(model, params.freeze).begin_epoch(0)
    points: list[RatePoint] = []
    mean = 0.0
    for step, (rate, drawn) in enumerate(zip(rates.rates(), _batches(examples, params, seed), strict=False), start=1):
        clips, rows = drawn
        try:
            loss, _ = learner.step(_read(clips, rows, params), len(rows), rate)
        except NotFiniteError:
            break
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
        points.append(RatePoint(rate, loss, mean / (1 - _SMOOTHING**step)))
        if step >= _FEWEST and points[-1].smoothed > _DIVERGED * min(point.smoothed for point in points):
            break
    return points


def suggest_rate(points: list[RatePoint]) -> float | None:
    """Return a learning rate from the points of a test; None where the loss never falls."""
    lowest = min(points, key=lambda point: point.smoothed) if len(points) >= _FEWEST else None
    if lowest is None or lowest.smoothed >= points[0].smoothed:
        return None
    return lowest.rate / _BELOW_LOWEST


def _batches(examples: Examples, params: TrainParams, seed: int) -> Iterator[tuple[Examples, Tensor]]:
    """Yield the batches of one epoch after another, without end, each as the epoch's clips and rows of them."""
    epoch = 0
    while True:
        torch.manual_seed(named_seed(seed, "range test", epoch))
        order = sampling.draw_rows(examples.targets, params.sampling, examples.weights)
        clips = examples.in_epoch(params.augmentation.copies, named_seed(seed, "range test", epoch, "copies"))
        for rows in torch.tensor_split(order, math.ceil(len(order) / params.batch_size)):
            yield clips, rows
        epoch += 1


def _read(examples: Examples, rows: Tensor, params: TrainParams) -> Iterator[tuple[StoredBatch, Tensor]]:
    for micro in cut(rows, examples, params):
        partners = examples.partners.draw(micro, torch.default_generator) if examples.partners else None
        batch = examples.batches.take(micro, partners)
        yield batch, examples.targets[batch.rows]
