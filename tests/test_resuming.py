"""A killed run goes on and ends as an undisturbed one, with every setting; one whose numbers end keeps its checkpoint."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults import forbidden
from test_training import MODEL, PLAIN, SETTINGS, make_examples, make_model, train_small

from benchmarks.attack.bits import flip
from pipeline.errors import SonolexError
from pipeline.evaluation.epoch_scores import epoch_scorer
from pipeline.training import checkpoints, loop
from pipeline.training.checkpoints import run_key
from pipeline.training.classification import Classification
from pipeline.training.distributed import ALONE
from pipeline.training.losses import loss_of
from pipeline.training.settings import TrainParams
from pipeline.training.step import Learner

ADAM = {"kind": "adam", "betas": [0.95, 0.999], "weight_decay": 5e-7}
SGD = {"kind": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}
# Every setting that leaves a state between epochs, or draws numbers; those of one run do not touch one another.
CHANGES: dict[str, dict[str, Any]] = {
    "as they are": {},
    "constant, no average, adam, in parts": {
        "schedule": {"kind": "constant", "warmup_steps": 5},
        "average": {"kind": "none"},
        "optimiser": ADAM,
        "accumulate": 3,
    },
    "steps, average of the last epochs, sgd, balanced": {
        "schedule": {"kind": "steps", "warmup_steps": 7, "hold": 1, "every": 1, "factor": 0.5},
        "average": {"kind": "last", "epochs": 3},
        "optimiser": SGD,
        "sampling": "balanced",
    },
    "one cycle, average of epochs, bfloat16, patchout": {
        "schedule": {"kind": "one_cycle", "rise": 0.3, "start": 0.04, "end": 4e-6},
        "average": {"kind": "epochs", "first": 1, "last": 3},
        "precision": "bfloat16",
        "patchout": 0.4,
    },
    "float16, activation checkpointing, noise and powers": {
        "precision": "float16",
        "activation_checkpointing": True,
        "augmentation": PLAIN | {"noise": 0.3, "mixup_probability": 0.7, "mixup_domain": "power"},
    },
    "stages of freezing, killed in the second, with rates by depth": {
        "freeze": {
            "stages": [
                {"epochs": 1, "train": ["head"]},
                {"epochs": 2, "train": ["head", "encoder.blocks.1", "stem.stack.norms"]},
                {"train": "all"},
            ],
            "batch_norm": "frozen",
        },
        "rates": {"input": 1.0, "stem": 0.5, "encoder": 1.0, "head": 2.0, "layer_decay": 0.7},
    },
    "no clipping, kept epochs": {"gradient_clip": None, "checkpoint_ensemble": [1, 2, 4]},
}


def _kill_and_resume(folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[dict[str, float]]:
    """Hold a run that was killed in its third epoch to one that was not, and return its rows."""
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)  # after every epoch
    straight, expected = train_small(folder / "straight", **options)
    epochs = []

    def die_in_the_third(row: dict[str, float], _timing: dict[str, float]) -> None:
        epochs.append(row)
        if len(epochs) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_small(folder / "killed", die_in_the_third, **options)
    assert (folder / "killed").exists()
    resumed, trained = train_small(folder / "killed", **options)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert trained.kept.keys() == expected.kept.keys()
    for epoch, state in expected.kept.items():
        assert all(torch.equal(value, trained.kept[epoch][name]) for name, value in state.items()), epoch
    assert trained.history == expected.history
    assert [set(epoch) for epoch in trained.timing.epochs] == [{"clips_per_second", "input_fraction"}] * len(
        trained.history
    )
    assert not (folder / "killed").exists()  # nothing stays behind a finished run
    history: list[dict[str, float]] = trained.history
    return history


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_a_killed_run_ends_as_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    _kill_and_resume(tmp_path, monkeypatch, **changes)


def test_the_mean_prediction_of_all_epochs_survives_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _kill_and_resume(tmp_path, monkeypatch, validation=make_examples(9), score=epoch_scorer("one"))
    assert list(rows[0])[3:] == [
        "validation_loss", "accuracy", "mAP", "auc", "precision", "recall", "f1", "d_prime",
        "cumulative_accuracy", "cumulative_mAP", "cumulative_auc",
    ]  # fmt: skip
    assert rows[0]["cumulative_mAP"] == rows[0]["mAP"]
    assert any(row["cumulative_auc"] != row["auc"] for row in rows[1:])


def test_the_best_epoch_and_the_plateaus_survive_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = {"kind": "plateau", "warmup_steps": 2, "patience": 0, "factor": 0.5}
    options: dict[str, Any] = {"schedule": schedule, "keep_best": True, "epoch_metric": "mAP"}
    _kill_and_resume(tmp_path, monkeypatch, validation=make_examples(9), score=epoch_scorer("one"), **options)


def test_moments_of_a_channels_last_weight_survive_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second convolution has several input channels: its moments came back in another order than its weights."""
    monkeypatch.setitem(MODEL, "stem", MODEL["stem"] | {"channels": [8, 8], "strides": [[2, 2], [2, 2]]})
    _kill_and_resume(tmp_path, monkeypatch)


def test_the_scale_of_a_float16_loss_survives_a_checkpoint(tmp_path: Path) -> None:
    settings = TrainParams.model_validate(SETTINGS | {"precision": "float16"})

    def learner() -> Learner:
        return Learner(make_model(), settings, Classification(settings, loss_of("one"), 1, None), ALONE)

    def progress() -> checkpoints.Progress:
        return checkpoints.Progress({}, {}, torch.zeros(0, 0), {"epoch": 1})

    first, second = learner(), learner()
    first.scaler.load_state_dict(first.scaler.state_dict() | {"scale": 128.0, "_growth_tracker": 7})
    checkpoints.save_checkpoint(tmp_path / "c", first, progress())
    assert checkpoints.load_checkpoint(tmp_path / "c", second, progress())
    assert second.scaler.state_dict() == first.scaler.state_dict()


def test_an_unreadable_checkpoint_costs_the_run_and_no_more(tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(b"not a checkpoint")
    _, trained = train_small(tmp_path / "c")
    assert len(trained.history) == 4


def _killed_in_the_third(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    epochs = []

    def die(row: dict[str, float], _timing: dict[str, float]) -> None:
        epochs.append(row)
        if len(epochs) == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            train_small(path, die)


@pytest.mark.parametrize(("damaged", "resumed"), [(1, 2), (2, 0)])
def test_a_damaged_checkpoint_is_dropped_for_the_one_before_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, damaged: int, resumed: int
) -> None:
    straight, expected = train_small(tmp_path / "straight")
    path = tmp_path / "c"
    _killed_in_the_third(path, monkeypatch)
    files = [path, path.with_name("c.previous")]
    for file in files[:damaged]:
        flip(file, np.random.default_rng(3))
    caplog.set_level("INFO")
    model, trained = train_small(path)
    for file in files[:damaged]:
        assert f"{file}: expected a checkpoint as it was written, found it changed; it is dropped" in caplog.text
    assert (f"resuming after epoch {resumed} of 4" in caplog.text) == bool(resumed)
    assert trained.history == expected.history
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in straight.state_dict().items())
    assert not list(tmp_path.glob("c*"))


def test_a_checkpoint_that_may_not_be_read_stops_the_run_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _killed_in_the_third(tmp_path / "c", monkeypatch)
    whole = (tmp_path / "c").read_bytes()
    with forbidden(tmp_path / "c"), pytest.raises(PermissionError, match="/c'"):
        train_small(tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == whole


def test_runs_of_other_settings_have_other_checkpoints() -> None:
    assert run_key({"seed": 0}, "code") != run_key({"seed": 1}, "code")
    assert run_key({"seed": 0}, "code") != run_key({"seed": 0}, "other code")
    assert run_key({"a": 1, "b": 2}, "code") == run_key({"b": 2, "a": 1}, "code")


def test_a_loss_that_is_no_number_stops_with_step_clips_and_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    examples = make_examples(6)
    epochs = []

    def poison_after_two(row: dict[str, float], _timing: dict[str, float]) -> None:
        epochs.append(row)
        if len(epochs) == 2:
            examples.batches._cache[2][:] = float("nan")  # type: ignore[index]

    message = (
        r"step 2 \(epoch 3\): expected a finite loss, found nan; lower train\.learning_rate \(now 0\.003, [\d.]+ at this "
        r"step\) or look at the batch's clips: clip-\d, .*; clips with non-finite frames: clip-2; the state after epoch 2 "
        r"is kept in .*/c$"
    )
    with pytest.raises(SonolexError, match=message):
        train_small(tmp_path / "c", poison_after_two, examples=examples)
    assert (tmp_path / "c").exists()
    epochs.clear()
    train_small(tmp_path / "c", lambda row, timing: epochs.append(row), examples=make_examples(6))
    assert len(epochs) == 4


def test_gradients_that_are_no_numbers_stop_before_the_weights_are(tmp_path: Path) -> None:
    """The loss is finite, and so would be that of the next step, where the average is all that is kept."""
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items() if "running_" not in name}
    next(model.parameters()).register_hook(lambda gradient: gradient * torch.inf)
    message = (
        r"step 0 \(epoch 1\): expected a finite norm of the gradients, found (inf|nan); .*clip-\d.*; no checkpoint had"
    )
    with pytest.raises(SonolexError, match=message):
        train_small(tmp_path / "c", model=model)
    for name, value in before.items():
        if value.is_floating_point():
            assert torch.equal(model.state_dict()[name], value), name


def test_a_float16_step_that_overflows_is_left_out_until_no_scale_helps(tmp_path: Path) -> None:
    model = make_model()
    next(model.parameters()).register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(SonolexError, match=r"step 16 \(epoch 6\): expected a finite norm of the gradients"):
        train_small(tmp_path / "c", model=model, precision="float16", epochs=8)  # 2^16 halved at every step
