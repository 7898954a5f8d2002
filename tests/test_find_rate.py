"""Range tests of learning rates by `sonolex find-rate`, and what `sonolex check` says of the settings of fine-tuning."""

import contextlib
import csv
import hashlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from experiments import run_experiment
from matplotlib.image import imread
from test_training import SETTINGS, loss_of, make_examples, make_model
from typer.testing import CliRunner
from workspace import change_params

from pipeline.training.classification import Classification
from pipeline.training.distributed import ALONE
from pipeline.training.range_test import Range, RatePoint, run_range_test, suggest_rate
from pipeline.training.settings import TrainParams
from tools.sonolex import app

ONE_MODEL = (
    "experiment.frame_models=[ast]", "experiment.token_models=[bag_of_tokens]", "report.headline=[ast]",
    "models.ast.encoder.width=16", "models.ast.stem.channels=[4]", "models.ast.stem.strides=[[4,4]]",
)  # fmt: skip
RATES = Range(1e-5, 1.0, 60)


def _points(**changes: Any) -> list[RatePoint]:
    params = TrainParams.model_validate(SETTINGS | changes)
    task = Classification(params, loss_of("one"), 1, None)
    return run_range_test(make_model(), params, task, make_examples(24), rates=RATES, seed=0, context=ALONE)


def test_rates_rise_geometrically() -> None:
    assert Range(1e-4, 1e-1, 4).rates() == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1])


def test_the_suggestion_is_a_tenth_of_the_rate_of_the_lowest_loss() -> None:
    """A bowl by construction: the loss is lowest at a rate of 1e-2, half-way through."""
    rates = Range(1e-4, 1.0, 41).rates()
    points = [RatePoint(rate, 0.0, 1 + math.log10(rate / 1e-2) ** 2) for rate in rates]
    assert suggest_rate(points) == pytest.approx(1e-3)
    assert suggest_rate([RatePoint(rate, 0.0, 1 + rate) for rate in rates]) is None
    assert suggest_rate(points[:5]) is None


def test_a_range_test_is_the_same_twice_and_suggests_a_rate_that_learns() -> None:
    points = _points()
    assert points == _points()
    suggested = suggest_rate(points)
    assert suggested is not None
    assert 1e-4 < suggested < 1e-1


def test_a_range_test_ends_where_the_loss_diverges_and_trains_the_first_stage() -> None:
    sgd = {"kind": "sgd", "momentum": 0.9, "nesterov": False, "weight_decay": 0.0}
    freeze = {"stages": [{"epochs": 1, "train": ["head"]}, {"train": "all"}], "batch_norm": "frozen"}
    params = TrainParams.model_validate(SETTINGS | {"optimiser": sgd, "gradient_clip": None, "freeze": freeze})
    model, before = make_model(), make_model().state_dict()
    task, rates = Classification(params, loss_of("one"), 1, None), Range(1e-3, 1e6, 60)
    points = run_range_test(model, params, task, make_examples(24), rates=rates, seed=0, context=ALONE)
    assert len(points) < 60
    assert {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])} == {
        "head.classify.weight", "head.classify.bias"
    }  # fmt: skip


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_experiment(tmp_path_factory.mktemp("find") / "rate", ONE_MODEL)


def _digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_find_rate_writes_its_table_and_figure_alone(experiment: Path) -> None:
    before = _digests(experiment)
    with contextlib.chdir(experiment):
        done = CliRunner().invoke(app, ["find-rate", "ast", "--steps", "20", "--out", "found"])
        wrong = CliRunner().invoke(app, ["find-rate", "cnn"])
        classical = CliRunner().invoke(app, ["find-rate", "bag_of_tokens-kmeans"])
        fold = CliRunner().invoke(app, ["find-rate", "ast", "--fold", "7"])
    assert done.exit_code == 0, done.output
    assert "found.csv, found.png: 20 steps, at rates from 1e-07 to 1" in done.output
    assert "suggested train.learning_rate: " in done.output or "no suggestion" in done.output
    assert _digests(experiment).keys() - before.keys() == {"found.csv", "found.png"}
    assert before.items() <= _digests(experiment).items()
    rows = list(csv.DictReader((experiment / "found.csv").open()))
    assert [list(rows[0]), len(rows)] == [["rate", "loss", "smoothed"], 20]
    assert imread(experiment / "found.png").ndim == 3
    assert "expected a model of the experiment, found cnn; it has: ast, bag_of_tokens-kmeans" in wrong.output
    assert "bag_of_tokens-kmeans: expected a network, which has a learning rate" in classical.output
    assert "--fold: expected one of 1, found 7" in fold.output


def _check(experiment: Path, changes: dict[str, Any]) -> str:
    text = (experiment / "params.yaml").read_text()
    try:
        change_params(experiment, changes)
        with contextlib.chdir(experiment):
            return CliRunner().invoke(app, ["check"]).output
    finally:
        (experiment / "params.yaml").write_text(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train.freeze.stages": [{"train": ["head", "encoder.layers.1"]}]},
            "train.freeze.stages.0.train: expected groups of this network's weights, found encoder.layers.1; it has: stem, ",
        ),
        (
            {"train.lora": {"rank": 2, "alpha": 4, "dropout": 0.0, "targets": ["query"]}},
            "train.lora.targets: expected linear maps of the encoder, found query; it has: qkv, proj, fc1, fc2 (models.ast)",
        ),
        ({"train.freeze.stages": [{"train": ["head"]}]}, "no mistakes"),
        ({"train.keep_best": True}, "train.keep_best: expected false while split.validation_fraction is 0, found true"),
        (
            {"train.schedule": {"kind": "plateau", "warmup_steps": 0, "patience": 2, "factor": 0.5}},
            "train.schedule.kind: expected cosine, constant, steps or one_cycle while split.validation_fraction is 0",
        ),
    ],
)
def test_check_finds_mistakes_of_fine_tuning_without_training(
    experiment: Path, changes: dict[str, Any], message: str
) -> None:
    assert message in _check(experiment, changes)
