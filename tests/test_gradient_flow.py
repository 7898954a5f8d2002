"""The plot of gradients by layer: right numbers, at a few epochs, and not a bit of training changed by looking."""

import csv
from pathlib import Path

import pytest
import torch
from test_training import make_model, train_small
from torch import nn

from pipeline.training import loop
from pipeline.training.gradient_flow import GradientFlow, write_gradients


def test_looking_changes_nothing_and_not_looking_costs_nothing(tmp_path: Path) -> None:
    plain, without = train_small(tmp_path / "c", epochs=6)
    watched, trained = train_small(tmp_path / "c", epochs=6, gradient_flow=True)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name
    assert without.gradients == []
    assert sorted({row["epoch"] for row in trained.gradients}) == [1, 2, 3, 5, 6]
    layers = [row["layer"] for row in trained.gradients if row["epoch"] == 1]
    assert layers[0] == "stem.stack.convolutions.0"
    assert layers[-1] == "head.classify"
    assert "encoder.blocks.1.qkv" in layers
    assert not any("norm" in layer for layer in layers)
    for row in trained.gradients:
        assert 0 < row["mean"] < row["largest"]


def test_means_and_largest_values_are_those_of_the_gradients() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    flow = GradientFlow(model, 1)
    assert flow.epochs == {0}
    first, second = torch.tensor([[1.0, -5, 0], [0, 0, 0]]), torch.tensor([[0, 0, 3.0], [3, 0, 0]])
    for gradient in (first, second, torch.full((2, 3), torch.inf)):  # the last overflowed: no step is taken
        model[0].weight.grad = gradient
        flow.look()
    assert flow.rows(1) == [
        {"epoch": 1, "layer": "0", "mean": pytest.approx(1.0), "largest": 5.0},
        {"epoch": 1, "layer": "1", "mean": 0.0, "largest": 0.0},  # no gradient at all
    ]
    assert flow.rows(2) == []


def test_a_killed_run_has_the_gradients_of_all_its_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    _, straight = train_small(tmp_path / "straight", gradient_flow=True)
    rows = []

    def die(row: dict[str, float], _timing: dict[str, float]) -> None:
        rows.append(row)
        if len(rows) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_small(tmp_path / "killed", die, gradient_flow=True)
    _, resumed = train_small(tmp_path / "killed", gradient_flow=True)
    assert resumed.gradients == straight.gradients


def test_the_table_and_the_picture(tmp_path: Path) -> None:
    _, trained = train_small(tmp_path / "c", model=make_model({"encoder.depth": 1}), epochs=2, gradient_flow=True)
    write_gradients(tmp_path, trained.gradients)
    first = (tmp_path / "gradients.png").read_bytes()
    write_gradients(tmp_path, trained.gradients)
    assert (tmp_path / "gradients.png").read_bytes() == first  # no date: it is part of an artifact
    with (tmp_path / "gradients.csv").open() as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["epoch", "layer", "mean", "largest"]
    assert len(table) == len(trained.gradients)
    assert float(table[0]["mean"]) == pytest.approx(trained.gradients[0]["mean"], rel=1e-5)
    assert (tmp_path / "gradients.png").read_bytes().startswith(b"\x89PNG")
