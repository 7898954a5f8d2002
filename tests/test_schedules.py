"""Learning rates by hand, by what the published runs logged, and by torch's own schedules."""

import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from pipeline.training.schedules import ScheduleParams, rate_factor


def rates(schedule: dict[str, Any], *, steps_per_epoch: int, num_epochs: int) -> list[float]:
    params: Any = TypeAdapter(ScheduleParams).validate_python(schedule)
    steps = range(steps_per_epoch * num_epochs)
    return [rate_factor(params, step, steps_per_epoch=steps_per_epoch, num_epochs=num_epochs) for step in steps]


def steps_schedule(hold: int, every: int, factor: float, warmup_steps: int = 0) -> dict[str, Any]:
    return {"kind": "steps", "warmup_steps": warmup_steps, "hold": hold, "every": every, "factor": factor}


def test_cosine_rises_and_falls() -> None:
    found = rates({"kind": "cosine", "warmup": 0.1}, steps_per_epoch=20, num_epochs=5)
    assert found[0] == pytest.approx(0.1)
    assert max(found) == found[9] == found[10] == 1
    assert found[55] == pytest.approx(0.5)
    assert found[99] < 0.001


def test_a_constant_rate_warms_up_and_stays() -> None:
    found = rates({"kind": "constant", "warmup_steps": 4}, steps_per_epoch=3, num_epochs=2)
    assert found == [0.25, 0.5, 0.75, 1, 1, 1]
    assert rates({"kind": "constant", "warmup_steps": 0}, steps_per_epoch=2, num_epochs=1) == [1, 1]


@pytest.mark.parametrize(
    ("schedule", "num_epochs", "expected"),
    [
        # AST on all of AudioSet logged 1e-5, 1e-5, 5e-6, 2.5e-6, 1.25e-6.
        (steps_schedule(2, 1, 0.5), 5, [1, 1, 0.5, 0.25, 0.125]),
        (steps_schedule(10, 5, 0.5), 25, [1.0] * 10 + [0.5] * 5 + [0.25] * 5 + [0.125] * 5),
        (steps_schedule(5, 1, 0.85), 8, [1, 1, 1, 1, 1, 0.85, 0.85**2, 0.85**3]),
        (steps_schedule(0, 2, 0.5), 4, [0.5, 0.5, 0.25, 0.25]),
    ],
    ids=["audioset", "balanced", "esc50", "at once"],
)
def test_steps_decay_by_epoch_as_published(schedule: dict[str, Any], num_epochs: int, expected: list[float]) -> None:
    found = rates(schedule, steps_per_epoch=3, num_epochs=num_epochs)
    assert found[::3] == pytest.approx(expected)
    assert found[::3] == found[2::3]  # the same all through an epoch


def test_steps_are_those_of_torchs_multi_step_schedule() -> None:
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, list(range(3, 1000, 2)), gamma=0.7)
    for rate in rates(steps_schedule(3, 2, 0.7), steps_per_epoch=1, num_epochs=12):
        assert rate == pytest.approx(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()


def test_a_warm_up_hides_no_decay_and_never_has_a_rate_of_zero() -> None:
    """Peer bug 1.3.20: the warm-up wrote over the decays of its epochs, and began with 50 steps at 0."""
    found = rates(steps_schedule(1, 1, 0.5, warmup_steps=8), steps_per_epoch=4, num_epochs=3)
    by_hand = [1 / 8, 2 / 8, 3 / 8, 4 / 8, 5 / 16, 6 / 16, 7 / 16, 8 / 16, 1 / 4, 1 / 4, 1 / 4, 1 / 4]
    assert found == pytest.approx(by_hand)


@pytest.mark.parametrize(("rise", "num_steps"), [(0.3, 100), (0.25, 40), (0.5, 7), (0.9, 10)])
def test_one_cycle_is_torchs(rise: float, num_steps: int) -> None:
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=1.0, total_steps=num_steps, pct_start=rise, cycle_momentum=False
    )
    settings = {"kind": "one_cycle", "rise": rise, "start": 1 / 25, "end": 1 / 250_000}
    found = rates(settings, steps_per_epoch=1, num_epochs=num_steps)
    for step, rate in enumerate(found):
        assert rate == pytest.approx(optimiser.param_groups[0]["lr"], abs=1e-12), step
        if step + 1 < num_steps:
            optimiser.step()
            schedule.step()


@pytest.mark.parametrize(
    "change", [{"rise": 0.0}, {"rise": 1.0}, {"start": 1.1}, {"end": -0.1}, {"start": 0.0, "end": 1.0, "rise": 0.99}]
)
def test_one_cycle_refuses_to_rise_never_or_always(change: dict[str, float]) -> None:
    settings = {"kind": "one_cycle", "rise": 0.3, "start": 0.04, "end": 0.0} | change
    with nullcontext() if len(change) == 3 else pytest.raises(ValidationError, match=next(iter(change))):
        TypeAdapter(ScheduleParams).validate_python(settings)


@pytest.mark.parametrize("num_steps", [1, 2, 3])
@pytest.mark.parametrize(
    "schedule",
    [
        {"kind": "cosine", "warmup": 1.0},
        {"kind": "one_cycle", "rise": 0.1, "start": 0.0, "end": 0.0},
        steps_schedule(1, 1, 0.1, warmup_steps=1000),
    ],
    ids=["cosine", "one_cycle", "steps"],
)
def test_short_runs_have_rates_too(schedule: dict[str, Any], num_steps: int) -> None:
    found = rates(schedule, steps_per_epoch=1, num_epochs=num_steps)
    assert all(math.isfinite(rate) and 0 <= rate <= 1 for rate in found)
