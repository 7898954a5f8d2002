"""The section `train`: what cannot be is named before anything is trained, and published recipes can be said."""

from typing import Any

import pytest
from conftest import REPOSITORY
from test_training import SETTINGS

from pipeline.errors import ParamsError
from pipeline.params import validate_params
from pipeline.training.schedules import rate_factor
from pipeline.training.settings import TrainParams

STEPS = {"kind": "steps", "warmup_steps": 1000, "every": 1, "factor": 0.5}
ADAM = {"kind": "adam", "betas": [0.95, 0.999], "weight_decay": 5e-7}


def _with(changes: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with changes by dotted key."""
    section: dict[str, Any] = {**SETTINGS}
    for key, value in changes.items():
        outer, _, inner = key.partition(".")
        section[outer] = {**section[outer], inner: value} if inner else value
    return section


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("learning_rate", 10, r"train\.learning_rate: input should be less than or equal to 1, found 10"),
        ("learning_rate", 0.0, r"train\.learning_rate: input should be greater than 0, found 0\.0"),
        ("learning_rate", float("nan"), r"train\.learning_rate: .*, found nan"),
        ("epochs", 0, r"train\.epochs: .*, found 0"),
        ("batch_size", 0, r"train\.batch_size: .*, found 0"),
        ("accumulate", 0, r"train\.accumulate: .*, found 0"),
        ("accumulate", 9, r"accumulate: expected at most batch_size 8, a clip per micro-batch, found 9"),
        ("schedule.kind", "cosin", r"train\.schedule\.kind: expected one of cosine, .*found 'cosin'"),
        ("schedule.warmup", 1.5, r"train\.schedule\.warmup: input should be less than or equal to 1, found 1\.5"),
        ("schedule.warmupp", 0.1, r"train\.schedule\.warmupp: unknown key; did you mean `warmup`\?"),
        ("schedule", STEPS, r"train\.schedule\.hold: field required, found no value"),
        ("schedule", STEPS | {"hold": 2, "factor": 2.0}, r"train\.schedule\.factor: .* less than or equal to 1, found 2\.0"),
        ("optimiser.betas", [0.9, 1.0], r"train\.optimiser\.betas\.1: input should be less than 1, found 1\.0"),
        ("optimiser.weight_decay", float("inf"), r"train\.optimiser\.weight_decay: .*, found inf"),
        ("optimiser", {"kind": "sgd", "momentum": 0.0, "nesterov": True, "weight_decay": 0.0}, "nesterov: expected false"),
        ("gradient_clip", 0.0, r"train\.gradient_clip: .*, found 0\.0"),
        ("gradient_clip", float("inf"), r"train\.gradient_clip: input should be a finite number, found inf"),
        ("label_smoothing", 1.0, r"train\.label_smoothing: .*, found 1\.0"),
        ("average.decay", 1.0, r"train\.average\.decay: .*, found 1\.0"),
        ("average", {"kind": "last", "epochs": 5}, r"average: expected epochs of the 4 that are run, found 0 to 4"),
        ("average", {"kind": "epochs", "first": 3, "last": 5}, "epochs of the 4 that are run, found 3 to 5"),
        ("average", {"kind": "epochs", "first": 3, "last": 2}, "expected first <= last, found first 3 and last 2"),
        ("checkpoint_ensemble", [2, 5], r"checkpoint_ensemble: expected rising numbers from 1 to epochs 4, found \[2, 5\]"),
        ("checkpoint_ensemble", [3, 3], r"checkpoint_ensemble: expected rising numbers from 1 to epochs 4, found \[3, 3\]"),
        ("checkpoint_ensemble", [0], r"train\.checkpoint_ensemble\.0: input should be greater than 0, found 0"),
        ("early_stop_patience", -1, r"train\.early_stop_patience: .*, found -1"),
        ("precision", "half", r"train\.precision: .*'float32', 'bfloat16' or 'float16'.*, found 'half'"),
        ("compile", "yes", r"train\.compile: input should be a valid boolean, found 'yes'"),
        ("patchout", 1.0, r"train\.patchout: input should be less than 1, found 1\.0"),
        ("augmentation.mixup_probability", 8, r"mixup_probability: input should be less than or equal to 1, found 8"),
        ("augmentation.mixup_probability", -0.1, r"mixup_probability: .* greater than or equal to 0, found -0\.1"),
        ("augmentation.mixup_alpha", 0.0, r"train\.augmentation\.mixup_alpha: .*, found 0\.0"),
        ("augmentation.mixup_domain", "wave", r"train\.augmentation\.mixup_domain: .*'log' or 'power'"),
        ("augmentation.noise", 2.0, r"train\.augmentation\.noise: .*, found 2\.0"),
        ("augmentation.time_shift", 1.1, r"train\.augmentation\.time_shift: .*, found 1\.1"),
        ("augmentation.token_noise", -1.0, r"train\.augmentation\.token_noise: .*, found -1\.0"),
        ("augmentation.frame_masks", {"count": -1, "width": 4}, r"frame_masks\.count: .*, found -1"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_named_before_training(key: str, value: Any, message: str) -> None:
    """Peers took a mix-up of 8 in silence, and the model did not learn."""
    with pytest.raises(ParamsError, match=message):
        validate_params(TrainParams, _with({key: value}), "train")


def test_epochs_that_a_run_may_never_reach_are_not_averaged() -> None:
    with pytest.raises(
        ParamsError, match=r"average\.kind: expected none or ema while early_stop_patience is 2, found last"
    ):
        validate_params(
            TrainParams, _with({"average": {"kind": "last", "epochs": 2}, "early_stop_patience": 2}), "train"
        )


def test_epochs_that_a_run_may_never_reach_are_not_kept() -> None:
    with pytest.raises(
        ParamsError, match=r"checkpoint_ensemble: expected none while early_stop_patience is 2, found \[4\]"
    ):
        validate_params(TrainParams, _with({"checkpoint_ensemble": [4], "early_stop_patience": 2}), "train")


# Epochs, clips a batch, rate; hold, every, factor; warm-up steps; last epochs averaged; mix-up; masks; sampling.
PUBLISHED = {
    "ast_audioset_full": ((5, 12, 1e-5), (2, 1, 0.5), 1000, 5, 0.5, (48, 192), "balanced"),
    "ast_audioset_balanced": ((25, 12, 5e-5), (10, 5, 0.5), 1000, 20, 0.5, (48, 192), "shuffled"),
    "ast_esc50": ((25, 48, 1e-5), (5, 1, 0.85), 0, 0, 0.0, (24, 96), "shuffled"),
    "ast_speechcommands": ((30, 128, 2.5e-4), (5, 1, 0.85), 0, 0, 0.6, (48, 48), "shuffled"),
    "psla_audioset_balanced": ((60, 100, 1e-3), (35, 5, 0.5), 1000, 20, 0.5, (48, 192), "shuffled"),
    "psla_audioset_full": ((30, 100, 1e-4), (10, 5, 0.5), 1000, 15, 0.5, (48, 192), "balanced"),
    "psla_fsd50k": ((40, 24, 5e-4), (10, 5, 0.5), 1000, 20, 0.5, (48, 192), "balanced"),
}
RATES = {  # after the warm-up, by epoch; those of the first are in AST's log
    "ast_audioset_full": [1e-5, 1e-5, 5e-6, 2.5e-6, 1.25e-6],
    "ast_audioset_balanced": [5e-5] * 10 + [2.5e-5] * 5 + [1.25e-5] * 5 + [6.25e-6] * 5,
    "ast_esc50": [1e-5] * 5 + [1e-5 * 0.85**n for n in range(1, 21)],
    "psla_audioset_full": [1e-4] * 10 + [5e-5] * 5 + [2.5e-5] * 5 + [1.25e-5] * 5 + [6.25e-6] * 5,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipes_can_be_said(name: str) -> None:
    (epochs, batch, rate), (hold, every, factor), warmup, last, mixup, (bands, frames), sampling = PUBLISHED[name]
    params = validate_params(
        TrainParams,
        _with({
            "epochs": epochs, "batch_size": batch, "learning_rate": rate, "optimiser": ADAM, "gradient_clip": None,
            "schedule": {
                "kind": "steps", "warmup_steps": warmup, "hold": hold, "every": every, "factor": factor
            },
            "average": {"kind": "last", "epochs": last} if last else {"kind": "none"},
            "label_smoothing": 0.0, "sampling": sampling, "precision": "float16",
            "augmentation.mixup_probability": mixup, "augmentation.mixup_alpha": 10.0,
            "augmentation.mixup_domain": "power",
            "augmentation.frame_masks": {"count": 1, "width": frames},
            "augmentation.band_masks": {"count": 1, "width": bands},
            "augmentation.noise": 0.1 if name == "ast_speechcommands" else 0.0,
        }),
        "train",
    )  # fmt: skip
    late = params.schedule.model_copy(update={"warmup_steps": 0})
    rates = [
        params.learning_rate * rate_factor(late, epoch, steps_per_epoch=1, num_epochs=params.epochs)
        for epoch in range(params.epochs)
    ]
    assert rates == pytest.approx(RATES.get(name, rates))


def test_every_setting_is_explained() -> None:
    """docs/training.md names each param of the section, those of every kind included."""
    page = (REPOSITORY / "docs" / "training.md").read_text()
    names = set(TrainParams.model_fields)
    for schema in TrainParams.model_json_schema()["$defs"].values():
        names |= set(schema.get("properties", {}))
    assert {name for name in names if f"`{name}`" not in page and f".{name}`" not in page} == set()
