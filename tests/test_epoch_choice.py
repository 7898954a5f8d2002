"""Comparison of epochs: the best by any validation metric, early stopping by it, and the plateaus of torch's schedule."""

import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from test_training import SETTINGS, make_examples, train_small

from pipeline.errors import ParamsError, SonolexError
from pipeline.evaluation.epoch_scores import epoch_scorer
from pipeline.params import validate_params
from pipeline.training.epoch_choice import EpochMetric, best_epoch, count_plateaus, epoch_scores, is_exhausted
from pipeline.training.settings import PretrainParams, TrainParams
from pipeline.training.validation import Examples

PLATEAU = {"kind": "plateau", "warmup_steps": 0, "patience": 0, "factor": 0.5}
CONSTANT = {"kind": "constant", "warmup_steps": 0}


def _misled() -> Examples:
    """Return validation clips with wrong labels: the more a network learns, the worse it is on them."""
    examples = make_examples(9)
    return Examples(examples.batches, examples.targets.roll(1, dims=1), examples.clip_ids)


def test_a_loss_is_best_where_it_is_lowest_and_other_metrics_where_they_are_highest() -> None:
    history = [
        {"validation_loss": 3.0, "mAP": 0.2},
        {"validation_loss": 1.0, "mAP": math.nan},
        {"validation_loss": 2.0, "mAP": 0.4},
    ]
    assert best_epoch(epoch_scores(history, "loss")) == 1
    assert best_epoch(epoch_scores(history, "mAP")) == 2
    assert epoch_scores(history, "mAP")[1] == -math.inf


def test_patience_counts_from_the_first_of_equal_epochs_and_the_last_of_them_is_kept() -> None:
    scores = [0.1, 0.5, 0.5, 0.3]
    assert best_epoch(scores) == 2
    assert [is_exhausted(scores[:n], 2) for n in range(5)] == [False, False, False, False, True]
    assert not is_exhausted(scores, 0)


@pytest.mark.parametrize("patience", [0, 1, 2, 3])
def test_plateaus_are_those_of_torchs_schedule(patience: int) -> None:
    generator = torch.Generator().manual_seed(patience)
    scores = torch.randint(0, 6, (60,), generator=generator).double().cumsum(0).sub(torch.arange(60) * 2.5).tolist()
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser, "max", factor=0.5, patience=patience, threshold=0.0, eps=0.0
    )
    for number, score in enumerate(scores, start=1):
        schedule.step(score)
        assert 0.5 ** count_plateaus(scores[:number], patience) == optimiser.param_groups[0]["lr"], number


@pytest.mark.parametrize("metric", get_args(EpochMetric))
def test_the_best_epoch_by_every_metric_is_what_is_stored(tmp_path: Path, metric: EpochMetric) -> None:
    """Kept epochs are the weights that each epoch would store, so the best of them is the model."""
    changes: dict[str, Any] = {"keep_best": True, "epoch_metric": metric, "checkpoint_ensemble": [1, 2, 3, 4]}
    model, trained = train_small(tmp_path / "c", validation=_misled(), score=epoch_scorer("one"), **changes)
    assert len(trained.history) == 4  # it does not stop early
    best = best_epoch(epoch_scores(trained.history, metric)) + 1
    assert all(
        torch.equal(trained.kept[best][name], value)
        for name, value in model.state_dict().items()
        if "num_batches" not in name
    )
    if metric == "loss":
        assert best == 1


def test_early_stopping_waits_for_the_chosen_metric(tmp_path: Path) -> None:
    """Accuracy on these clips is perfect from some epoch on, while their loss still falls."""
    changes: dict[str, Any] = {"early_stop_patience": 2, "epochs": 40, "score": epoch_scorer("one")}
    _, trained = train_small(tmp_path / "c", validation=make_examples(9), epoch_metric="accuracy", **changes)
    accuracies = [row["accuracy"] for row in trained.history]
    assert len(accuracies) < 40
    assert accuracies.index(max(accuracies)) == len(accuracies) - 3
    losses = [row["validation_loss"] for row in trained.history]
    assert losses.index(min(losses)) > accuracies.index(max(accuracies))


def test_a_plateau_lowers_the_rate(tmp_path: Path) -> None:
    _, trained = train_small(tmp_path / "c", validation=_misled(), schedule=PLATEAU, epochs=4)
    assert [row["learning_rate"] for row in trained.history] == pytest.approx([3e-3, 3e-3, 1.5e-3, 7.5e-4])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"keep_best": True},
            r"train\.keep_best: expected false without validation clips, found true; .* keep_best to false",
        ),
        ({"schedule": PLATEAU}, r"train\.schedule\.kind: expected cosine, .* without validation clips, found plateau"),
    ],
)
def test_a_choice_without_validation_clips_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SonolexError, match=message):
        train_small(tmp_path / "c", **changes)


def test_a_metric_that_no_epoch_has_is_refused() -> None:
    with pytest.raises(ParamsError, match=r"train\.epoch_metric: .*'loss', 'accuracy', 'mAP'.* found 'map'"):
        validate_params(TrainParams, SETTINGS | {"epoch_metric": "map"}, "train")


def test_pretraining_chooses_no_epoch() -> None:
    own = {
        "epochs": 4,
        "batch_size": 8,
        "learning_rate": 1e-3,
        "schedule": CONSTANT,
        "mask_share": 0.4,
        "mask_span": 20,
    }
    train = TrainParams.model_validate(
        SETTINGS
        | {
            "keep_best": True,
            "epoch_metric": "mAP",
            "freeze": {"stages": [{"train": ["head"]}], "batch_norm": "updated"},
        }
        | {"rates": SETTINGS["rates"] | {"encoder": 0.1}}
    )
    settings = PretrainParams.model_validate(own).settings(train)
    assert not settings.keep_best
    assert (settings.epoch_metric, settings.freeze.stages, settings.rates.are_alike, settings.lora) == (
        "loss",
        [],
        True,
        None,
    )
