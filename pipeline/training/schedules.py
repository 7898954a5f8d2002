"""Learning-rate schedules: factor on the peak rate at each step.

`cosine` warms up linearly and falls along half a cosine to 0 (Loshchilov and Hutter, 2017, arXiv 1608.03983). `steps` is the
schedule of AST and PSLA (Gong et al., 2021): the rate is held for some epochs, then multiplied by a factor every few. The
warm-up is a factor too and does not hide decays within it; the original overwrote these decays, and gave the first 50 steps
a rate of 0. `one_cycle` rises and falls along half a cosine each (Smith and Topin, 2018, arXiv 1708.07120), as torch's
OneCycleLR; betas and momentum are constant. `plateau` multiplies the rate by a factor whenever a validation metric has not
improved for some epochs, as torch's ReduceLROnPlateau.

Conventions: steps and epochs count from 0; a factor lies in 0 to 1.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from pipeline.params import Params
from pipeline.training.epoch_choice import count_plateaus

Fraction = Annotated[float, Field(ge=0, le=1)]


class CosineParams(Params):
    kind: Literal["cosine"]
    warmup: Fraction  # of all steps


class ConstantParams(Params):
    kind: Literal["constant"]
    warmup_steps: NonNegativeInt


class StepsParams(Params):
    kind: Literal["steps"]
    warmup_steps: NonNegativeInt
    hold: NonNegativeInt  # epochs before the first decay
    every: PositiveInt  # epochs from one decay to the next
    factor: float = Field(gt=0, le=1)  # on the rate, at each decay


class OneCycleParams(Params):
    kind: Literal["one_cycle"]
    rise: float = Field(gt=0, lt=1)  # fraction of all steps
    start: Fraction  # of the peak, at the first step; torch's default is 1 / 25
    end: Fraction  # of the peak, at the last step; torch's default is 1 / 250,000


class PlateauParams(Params):
    kind: Literal["plateau"]
    warmup_steps: NonNegativeInt
    patience: NonNegativeInt  # epochs without a better metric that are waited
    factor: float = Field(gt=0, lt=1)  # on the rate, after each such wait


ScheduleParams = Annotated[
    CosineParams | ConstantParams | StepsParams | OneCycleParams | PlateauParams,
    Field(discriminator="kind"),
]


def rate_factor(
    params: ScheduleParams, step: int, *, steps_per_epoch: int, num_epochs: int, scores: Sequence[float] = ()
) -> float:
    """Return the factor on the peak rate at a step of a run of `num_epochs`.

    `scores` are those of the finished epochs (`pipeline/training/epoch_choice.py`), which `plateau` depends on.
    """
    num_steps = num_epochs * steps_per_epoch
    if isinstance(params, CosineParams):
        return _warmup_cosine(step, num_steps, params.warmup)
    if isinstance(params, OneCycleParams):
        return _one_cycle(step, num_steps, params)
    warm = min(1.0, (step + 1) / max(1, params.warmup_steps))
    if isinstance(params, ConstantParams):
        return warm
    if isinstance(params, PlateauParams):
        return float(warm * params.factor ** count_plateaus(scores, params.patience))
    decays = max(0, 1 + (step // steps_per_epoch - params.hold) // params.every)
    factor: float = warm * params.factor**decays
    return factor


def _warmup_cosine(step: int, num_steps: int, warmup: float) -> float:
    rising = round(warmup * num_steps)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, num_steps - rising)))


def _one_cycle(step: int, num_steps: int, params: OneCycleParams) -> float:
    peak = max(0.0, params.rise * num_steps - 1)
    if step < peak:
        return _between(params.start, 1.0, step / peak)
    return _between(1.0, params.end, (step - peak) / max(1e-9, num_steps - 1 - peak))


def _between(start: float, end: float, progress: float) -> float:
    """Interpolate from start to end along half a cosine; `progress` lies in 0 to 1."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))
