"""The section `train`: what cannot be is named before anything is trained, and recipes train as published."""

import re
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from ruamel.yaml import YAML
from test_training import SETTINGS
from typer.testing import CliRunner

from pipeline.check_params import Experiment, load_experiment
from pipeline.errors import ParamsError
from pipeline.models.network import NetworkParams
from pipeline.params import read_params, validate_params
from pipeline.training.schedules import rate_factor
from pipeline.training.settings import TrainParams
from tools.compose import compose, dump, list_recipes
from tools.corpus_check import rate_remarks
from tools.sonolex import app

STEPS = {"kind": "steps", "warmup_steps": 1000, "every": 1, "factor": 0.5}


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


# Of the authors' run.sh: epochs, clips a batch, rate; hold, every, factor; warm-up steps; epochs averaged; mix-up; masks of
# bands and frames; sampling.
PUBLISHED = {
    "ast_audioset_full": ((5, 12, 1e-5), (2, 1, 0.5), 1000, (1, 5), 0.5, (48, 192), "balanced"),
    "ast_audioset_balanced": ((25, 12, 5e-5), (10, 5, 0.5), 1000, (6, 25), 0.5, (48, 192), "shuffled"),
    "ast_esc50": ((25, 48, 1e-5), (5, 1, 0.85), 0, None, 0.0, (24, 96), "shuffled"),
    "ast_speechcommands": ((30, 128, 2.5e-4), (5, 1, 0.85), 0, None, 0.6, (48, 48), "shuffled"),
    "psla_audioset_balanced": ((60, 100, 1e-3), (35, 5, 0.5), 1000, (41, 60), 0.5, (48, 192), "shuffled"),
    "psla_audioset": ((30, 100, 1e-4), (10, 5, 0.5), 1000, (16, 30), 0.5, (48, 192), "balanced"),
    "psla_fsd50k": ((40, 24, 5e-4), (10, 5, 0.5), 1000, (21, 40), 0.5, (48, 192), "balanced"),
}
RATES = {  # after the warm-up, by epoch; those of the first are in AST's log
    "ast_audioset_full": [1e-5, 1e-5, 5e-6, 2.5e-6, 1.25e-6],
    "ast_audioset_balanced": [5e-5] * 10 + [2.5e-5] * 5 + [1.25e-5] * 5 + [6.25e-6] * 5,
    "ast_esc50": [1e-5] * 5 + [1e-5 * 0.85**n for n in range(1, 21)],
    "psla_audioset": [1e-4] * 10 + [5e-5] * 5 + [2.5e-5] * 5 + [1.25e-5] * 5 + [6.25e-6] * 5,
    "psla_audioset_balanced": [1e-3] * 35 + [1e-3 * 0.5**n for n in range(1, 6) for _ in range(5)],
}
# Frames of a clip, mean and standard deviation of the normalisation, standard deviations per unit.
INPUTS = {
    "ast_audioset_full": (1024, -4.2677393, 4.5689974, 2.0),
    "ast_audioset_balanced": (1024, -4.2677393, 4.5689974, 2.0),
    "ast_esc50": (512, -6.6268077, 5.358466, 2.0),
    "ast_speechcommands": (128, -6.845978, 5.5654526, 2.0),
    "psla_audioset_balanced": (1056, -4.6476, 4.5699, 1.0),
    "psla_audioset": (1056, -4.6476, 4.5699, 1.0),
    "psla_fsd50k": (3000, -4.6476, 4.5699, 1.0),
}


def _recipe(name: str, tmp_path: Path) -> Experiment:
    document, mistakes = compose(name, [], REPOSITORY / "recipes")
    assert not mistakes
    (tmp_path / "params.yaml").write_text(dump(document))
    return load_experiment(tmp_path / "params.yaml")


@pytest.mark.parametrize("name", PUBLISHED)
def test_recipes_train_as_published(name: str, tmp_path: Path) -> None:
    (epochs, batch, rate), (hold, every, factor), warmup, averaged, mixup, (bands, frames), sampling = PUBLISHED[name]
    params = _recipe(name, tmp_path).sections["train"]
    assert (params.epochs, params.batch_size, params.learning_rate) == (epochs, batch, rate)
    schedule = {"kind": "steps", "warmup_steps": warmup, "hold": hold, "every": every, "factor": factor}
    assert params.schedule.model_dump() == schedule
    assert params.optimiser.model_dump() == {"kind": "adam", "betas": (0.95, 0.999), "weight_decay": 5e-7}
    average = {"kind": "epochs", "first": averaged[0], "last": averaged[1]} if averaged else {"kind": "none"}
    assert params.average.model_dump() == average
    assert (params.sampling, params.gradient_clip, params.label_smoothing) == (sampling, None, 0.0)
    assert params.precision == ("float16" if name.startswith("ast") else "float32")
    augmentation = params.augmentation
    assert (augmentation.mixup_probability, augmentation.mixup_alpha) == (mixup, 10.0)
    masks = augmentation.band_masks, augmentation.frame_masks
    assert [(own.count, own.width) for own in masks] == [(1, bands), (1, frames)]
    late = params.schedule.model_copy(update={"warmup_steps": 0})
    rates = [rate * rate_factor(late, epoch, steps_per_epoch=1, num_epochs=epochs) for epoch in range(epochs)]
    assert rates == pytest.approx(RATES.get(name, rates))


@pytest.mark.parametrize("name", INPUTS)
def test_recipes_read_clips_as_published(name: str, tmp_path: Path) -> None:
    frames, mean, std, scale = INPUTS[name]
    experiment = _recipe(name, tmp_path)
    (model,) = (experiment.models[model] for model in experiment.sections["experiment"].frame_models)
    section = model.model_dump()
    assert section["input"] == {"kind": "frames", "normalisation": {"mean": mean, "std": std}, "std_scale": scale}
    stem = section["stem"]
    assert (stem.get("positions", stem)["frames"], stem.get("fill"), stem.get("positions", {}).get("shorter")) == (
        (frames, None, "pad") if name.startswith("ast") else (frames, "zero", None)
    )
    if name.startswith("psla"):
        norms = {"norm_epsilon": 1e-3, "norm_momentum": 0.01}
        assert section["encoder"] == {"kind": "timm", "network": "efficientnet_b2", "drop_path": 0.2, **norms}
    else:
        assert (stem["stride_frames"], stem["stride_bands"]) == (10, 10)


@pytest.mark.parametrize(
    "name", [name for name in list_recipes(REPOSITORY / "recipes") if name[:4] in ("ast_", "psla")]
)
def test_recipes_of_published_weights_store_float32_frames(name: str, tmp_path: Path) -> None:
    """Logits agree with the authors' to 1e-4 on float32 frames alone, and their rates are those that the authors took."""
    experiment = _recipe(name if name in PUBLISHED else f"esc50+{name}", tmp_path)
    assert experiment.sections["spectrogram"].dtype == "float32"
    model = experiment.models["psla" if name.startswith("psla") else "ast"]
    assert isinstance(model, NetworkParams)
    assert model.pretrained is not None
    assert experiment.sections["train"].learning_rate <= model.pretrained.highest_rate


RATE_REMARK = r"train\.learning_rate 0\.002 is above 0\.00025, .* kind imagenet further: .* set it to 0\.00025 or less"


def test_a_rate_that_is_too_high_for_published_weights_is_remarked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document, mistakes = compose("demo+ast_base384", ["train.learning_rate=2e-3"], REPOSITORY / "recipes")
    assert not mistakes
    (tmp_path / "params.yaml").write_text(dump(document))
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["check"])
    assert result.exit_code == 0, result.output
    assert re.search(rf"note: models\.ast\.pretrained: {RATE_REMARK}", result.output.replace("\n", " "))
    document["train"]["learning_rate"] = 2.5e-4
    (tmp_path / "params.yaml").write_text(dump(document))
    assert rate_remarks(load_experiment(tmp_path / "params.yaml")) == []


def test_every_setting_is_explained() -> None:
    """docs/training.md names each param of the section, those of every kind included."""
    page = (REPOSITORY / "docs" / "training.md").read_text()
    names = set(TrainParams.model_fields)
    for schema in TrainParams.model_json_schema()["$defs"].values():
        names |= set(schema.get("properties", {}))
    assert {name for name in names if f"`{name}`" not in page and f".{name}`" not in page} == set()


def test_augmentation_stays_within_the_bands(tmp_path: Path) -> None:
    document = read_params(REPOSITORY / "params.yaml")
    augmentation = document["train"]["augmentation"]
    augmentation["band_masks"]["width"] = 200
    augmentation["equaliser"] |= {"probability": 0.5, "bands": 64}
    augmentation["band_shift"] |= {"probability": 0.5, "range": [-300.0, 4.0]}
    document["spectrogram"]["front_end"]["n_mels"] = 40
    YAML().dump(document, tmp_path / "params.yaml")
    with pytest.raises(ParamsError) as error:
        load_experiment(tmp_path / "params.yaml")
    for text in (
        "band_masks.width",
        "found 200",
        "equaliser.bands",
        "found 64",
        "band_shift.range",
        "found 300",
        "the 40 bands",
    ):
        assert text in str(error.value)
    augmentation["band_masks"]["width"] = 40
    augmentation["equaliser"]["probability"] = augmentation["band_shift"]["probability"] = 0.0
    YAML().dump(document, tmp_path / "params.yaml")
    assert load_experiment(tmp_path / "params.yaml")
