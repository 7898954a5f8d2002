"""Averages of weights, against means by hand."""

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from pipeline.training.averaging import AverageParams, WeightAverage


def averages(section: dict[str, Any], weights: list[float], steps_per_epoch: int = 1) -> list[float]:
    """Return the average at the end of every epoch, for a model whose one weight takes these values, step by step."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    params: Any = TypeAdapter(AverageParams).validate_python(section)
    average = WeightAverage(model, params, len(weights) // steps_per_epoch)
    found = []
    for step, value in enumerate(weights, 1):
        with torch.no_grad():
            model.weight.fill_(value)
        average.after_step()
        if step % steps_per_epoch == 0:
            average.after_epoch(step // steps_per_epoch)
            found.append(average.values["weight"].item())
    return found


def test_no_average_is_the_last_weights() -> None:
    assert averages({"kind": "none"}, [3, 1, 4, 1, 5, 9], steps_per_epoch=2) == [1, 1, 9]


def test_each_of_the_last_epochs_counts_once() -> None:
    """Peer bug 2.3.1: the first of them counted twice. Steps within an epoch do not count."""
    assert averages({"kind": "last", "epochs": 3}, [1, 2, 4, 8, 15]) == pytest.approx([1, 2, 4, 6, 9])
    assert averages({"kind": "last", "epochs": 2}, [0, 6, 0, 1, 0, 3], steps_per_epoch=2) == [6, 1, 2]


def test_epochs_after_the_averaged_ones_change_nothing() -> None:
    found = averages({"kind": "epochs", "first": 2, "last": 3}, [7, 1, 2, 100, 100])
    assert found == pytest.approx([7, 1, 1.5, 1.5, 1.5])


def test_the_moving_average_forgets_faster_at_first() -> None:
    mean, expected = 0.0, []
    for value, decay in ((1, 1 / 10), (2, 2 / 11), (3, 1 / 4), (4, 1 / 4)):
        mean = decay * mean + (1 - decay) * value
        expected.append(mean)
    assert averages({"kind": "ema", "decay": 0.25}, [1, 2, 3, 4]) == pytest.approx(expected)


def test_a_swap_is_undone_by_another() -> None:
    model = nn.BatchNorm1d(1)
    average = WeightAverage(model, TypeAdapter(AverageParams).validate_python({"kind": "ema", "decay": 0.9}), 1)
    with torch.no_grad():
        model.running_mean.fill_(10.0)  # type: ignore[union-attr]
    average.after_step()
    average.swap()
    assert model.running_mean.item() == pytest.approx(9)  # type: ignore[union-attr]
    average.swap()
    assert model.running_mean.item() == 10  # type: ignore[union-attr]
    assert average.values["running_mean"].item() == pytest.approx(9)
