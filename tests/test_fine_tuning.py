"""Fine-tuning: stages of freezing, learning rates by part and depth, and every value of every choice in a short run."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import ENCODERS, Section, build, network
from test_training import SETTINGS, make_examples, make_model, train_small
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.errors import ParamsError
from pipeline.evaluation.epoch_scores import epoch_scorer
from pipeline.models.checkpoint_formats.original import OriginalParams
from pipeline.models.network import NetworkParams
from pipeline.models.registry import validate_model_params
from pipeline.models.weight_groups import depths, spell_groups, weight_groups
from pipeline.params import validate_params
from pipeline.training.freezing import FreezeParams, Freezing
from pipeline.training.optimiser import AdamWParams, RateParams, build_optimiser, set_rate
from pipeline.training.rate_advice import rate_remark
from pipeline.training.settings import TrainParams

PUBLISHED = {
    "kind": "original",
    "source": "ast.pth",
    "digest": None,
    "classes": None,
    "frames": 64,
    "mean": -4.0,
    "std": 4.0,
}
POSITIONS = {"kind": "learned", "frames": 64, "shorter": "mask"}
HEAD_FIRST = [{"epochs": 2, "train": ["head"]}, {"epochs": 1, "train": ["head", "encoder.blocks.1"]}, {"train": "all"}]


def _ast(**changes: Any) -> Any:
    section = network("frames", "patches", "transformer", "class_distillation", stem__positions=POSITIONS, **changes)
    return build(section)


def _freezing(stages: list[Section], batch_norm: str = "frozen") -> dict[str, Any]:
    return {"freeze": {"stages": stages, "batch_norm": batch_norm}}


def _rates(**factors: float) -> RateParams:
    return RateParams.model_validate(SETTINGS["rates"] | factors)


def test_groups_are_parts_modules_and_blocks_by_their_exact_names() -> None:
    groups = weight_groups(_ast())
    assert spell_groups(groups) == (
        "stem, stem.table, stem.project, head.tokens, head.token_positions, encoder, encoder.blocks, encoder.blocks.0 to "
        "encoder.blocks.1, encoder.norm, head, head.norm, head.classify"
    )
    assert groups["encoder.blocks.1"].holds("encoder.blocks.1.qkv.weight")
    assert not groups["encoder.blocks.1"].holds("encoder.blocks.10.qkv.weight")
    assert groups["stem"].holds("head.tokens")  # class tokens enter the encoder
    assert not groups["head"].holds("head.tokens")


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_weight_is_in_one_part(encoder: str) -> None:
    stem = {"cnn": "identity", "timm": "identity", "identity": "identity"}.get(encoder, "convolution")
    model = build(network("tokens", stem, encoder, "mean"))
    groups = weight_groups(model)
    parts = [group for name, group in groups.items() if "." not in name]
    for name, _ in model.named_parameters():
        assert sum(group.holds(name) for group in parts) == 1, name


def test_depth_counts_blocks_from_the_head() -> None:
    deep = depths(_ast())
    assert {name: deep[name] for name in ("head.classify.weight", "encoder.norm.weight", "encoder.blocks.1.qkv.weight")} == {
        "head.classify.weight": 0, "encoder.norm.weight": 0, "encoder.blocks.1.qkv.weight": 1
    }  # fmt: skip
    assert (deep["encoder.blocks.0.fc1.bias"], deep["stem.project.weight"], deep["head.tokens"]) == (2, 3, 3)


def test_convolutions_and_their_norms_are_blocks_side_by_side() -> None:
    deep = depths(build(network("frames", "identity", "cnn", "mean")))
    assert [deep[f"encoder.stack.{kind}.{i}.weight"] for i in range(3) for kind in ("convolutions", "norms")] == [
        3,
        3,
        2,
        2,
        1,
        1,
    ]


def test_each_stage_trains_what_it_names(tmp_path: Path) -> None:
    """Weights of other groups keep their bits, weight decay and averaging included; gradients are where they should be."""
    model = make_model()
    states = [{name: value.clone() for name, value in model.state_dict().items()}]
    trained: list[set[str]] = []

    def look(row: dict[str, float], _timing: dict[str, float]) -> None:
        trained.append({name for name, weight in model.named_parameters() if weight.requires_grad})
        states.append({name: value.clone() for name, value in model.state_dict().items()})

    train_small(tmp_path / "c", look, model=model, average={"kind": "none"}, **_freezing(HEAD_FIRST))
    groups = weight_groups(model)
    everything = {name for name, _ in model.named_parameters()}
    head = {name for name in everything if groups["head"].holds(name)}
    block = {name for name in everything if groups["encoder.blocks.1"].holds(name)}
    assert trained == [head, head, head | block, everything]
    for before, after, named in zip(states, states[1:], trained, strict=False):
        changed = {name for name in everything if not torch.equal(before[name], after[name])}
        assert changed == named


@pytest.mark.parametrize(
    "optimiser",
    [
        {"kind": "adamw", "betas": [0.9, 0.98], "weight_decay": 0.5},
        {"kind": "adam", "betas": [0.9, 0.98], "weight_decay": 0.5},
        {"kind": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.5},
    ],
    ids=lambda section: section["kind"],
)
@pytest.mark.parametrize(
    "average", [{"kind": "ema", "decay": 0.9}, {"kind": "last", "epochs": 3}], ids=lambda section: section["kind"]
)
def test_frozen_weights_keep_their_bits_through_decay_and_averages(
    tmp_path: Path, optimiser: Section, average: Section
) -> None:
    before = make_model().state_dict()
    frozen = _freezing([{"train": ["head"]}])
    after = train_small(tmp_path / "c", optimiser=optimiser, average=average, **frozen)[0].state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        "head.classify.weight",
        "head.classify.bias",
    }


@pytest.mark.parametrize("batch_norm", ["frozen", "updated"])
def test_frozen_batch_norms_do_as_told(tmp_path: Path, batch_norm: str) -> None:
    """The stem of this network has one; when it is trained, its statistics are updated in any case."""
    for stages in ([{"train": ["head"]}], [{"train": ["head", "stem.stack.norms"]}]):
        before = make_model().state_dict()
        after = train_small(tmp_path / "c", average={"kind": "none"}, **_freezing(stages, batch_norm))[0].state_dict()
        moved = [not torch.equal(before[name], after[name]) for name in before if "running_" in name]
        assert moved == [batch_norm == "updated" or len(stages[0]["train"]) == 2] * 2


def test_embeddings_with_a_rate_of_zero_stay_frozen() -> None:
    model = build(network("tokens", "linear", input__embedding_rate=0.0))
    Freezing(model, FreezeParams.model_validate({"stages": [{"train": "all"}], "batch_norm": "frozen"})).begin_epoch(0)
    assert {name for name, weight in model.named_parameters() if not weight.requires_grad} == {
        name for name, _ in model.named_parameters() if name.startswith("input.")
    }


def test_every_batch_norm_is_in_training_mode_without_stages() -> None:
    model = build(network("frames", "identity", "timm", "attention"))
    Freezing(model, FreezeParams.model_validate({"stages": [], "batch_norm": "frozen"})).begin_epoch(0)
    assert all(module.training for module in model.modules() if isinstance(module, _BatchNorm))


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"train": []}], r"train\.freeze\.stages\.0: train: expected `all` or names .* everything is frozen"),
        (
            [{"train": "head"}],
            r"train\.freeze\.stages\.0\.train: expected `all` or a list of groups, such as \[head\], found 'head'",
        ),
        (
            [{"train": ["head"]}, {"train": "all"}],
            r"stages\.0\.epochs: expected a number, which only the last",
        ),
        (
            [{"epochs": 4, "train": ["head"]}, {"train": "all"}],
            r"freeze\.stages: expected less than epochs 4 before .* found 4",
        ),
        (
            [{"epochs": 3, "train": ["head"]}],
            r"freeze\.stages: expected epochs 4 in all, found 3; leave `epochs` of the last",
        ),
        ([{"epochs": 0, "train": ["head"]}], r"train\.freeze\.stages\.0\.epochs: .* greater than 0, found 0"),
        ([{"epoch": 1, "train": ["head"]}], r"train\.freeze\.stages\.0\.epoch: unknown key; did you mean `epochs`\?"),
    ],
)
def test_stages_that_cannot_be_are_named(stages: list[Section], message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        validate_params(TrainParams, SETTINGS | _freezing(stages), "train")


def test_a_group_that_matches_nothing_lists_those_there_are(tmp_path: Path) -> None:
    message = (
        r"train\.freeze\.stages\.1\.train: expected groups of this network's weights, found encoder\.block; it has: stem, .*"
        r"encoder\.blocks\.0 to encoder\.blocks\.1, .*head\.classify$"
    )
    stages = [{"epochs": 1, "train": ["head"]}, {"train": ["encoder.block"]}]
    with pytest.raises(ParamsError, match=message):
        train_small(tmp_path / "c", **_freezing(stages))


def test_a_stage_that_names_only_embeddings_without_a_rate_freezes_everything() -> None:
    model = build(network("tokens", "linear", input__embedding_rate=0.0))
    stages = FreezeParams.model_validate({"stages": [{"train": ["input"]}], "batch_norm": "frozen"})
    with pytest.raises(
        ParamsError, match=r"stages\.0\.train: .* found none in \['input'\]: everything is frozen; add head"
    ):
        Freezing(model, stages)


ADAMW = AdamWParams(kind="adamw", betas=(0.9, 0.98), weight_decay=0.05)


def _rate_of_each(model: nn.Module, rates: RateParams, embedding_rate: float = 1.0) -> dict[str, float]:
    optimiser = build_optimiser(model, ADAMW, 1e-3, embedding_rate=embedding_rate, rates=rates)
    set_rate(optimiser, 2e-3)
    by_weight = {weight: group["lr"] for group in optimiser.param_groups for weight in group["params"]}
    return {name: by_weight[weight] for name, weight in model.named_parameters()}


def test_parts_have_rates_of_their_own() -> None:
    found = _rate_of_each(_ast(), _rates(stem=0.1, encoder=0.5, head=3.0))
    assert found["stem.table"] == found["head.tokens"] == pytest.approx(2e-4)
    assert found["encoder.blocks.0.qkv.bias"] == found["encoder.norm.weight"] == pytest.approx(1e-3)
    assert found["head.classify.weight"] == pytest.approx(6e-3)


def test_rates_fall_with_the_depth_below_the_head() -> None:
    """By hand, as in BEiT: decay ** (layers + 1 - layer), with the stem as layer 0 and the head as the last."""
    found = _rate_of_each(_ast(), _rates(layer_decay=0.5))
    assert found["head.classify.weight"] == pytest.approx(2e-3)
    assert found["encoder.blocks.1.fc1.weight"] == pytest.approx(1e-3)
    assert found["encoder.blocks.0.fc1.weight"] == pytest.approx(5e-4)
    assert found["stem.project.weight"] == pytest.approx(2.5e-4)


def test_the_rate_of_embeddings_is_a_factor_on_that_of_the_input() -> None:
    model = build(network("tokens", "linear"))
    found = _rate_of_each(model, _rates(input=0.1, layer_decay=0.5), embedding_rate=0.05)
    assert found["input.tables.0.weight"] == pytest.approx(2e-3 * 0.1 * 0.5**3 * 0.05)


def test_rates_that_are_alike_leave_the_groups_of_the_optimiser_as_they_were() -> None:
    optimiser = build_optimiser(build(network("tokens", "linear")), ADAMW, 1e-3, embedding_rate=0.05, rates=_rates())
    assert [group["factor"] for group in optimiser.param_groups] == [1.0, 1.0, 0.05]
    assert [group["weight_decay"] for group in optimiser.param_groups] == [0.05, 0.0, 0.0]


CHOICES: dict[str, Section] = {
    **{
        f"schedule {section['kind']}": {"schedule": section}
        for section in (
            {"kind": "cosine", "warmup": 0.1},
            {"kind": "constant", "warmup_steps": 1},
            {"kind": "steps", "warmup_steps": 1, "hold": 1, "every": 1, "factor": 0.5},
            {"kind": "one_cycle", "rise": 0.3, "start": 0.04, "end": 4e-6},
            {"kind": "plateau", "warmup_steps": 1, "patience": 0, "factor": 0.5},
        )
    },
    **{
        f"optimiser {section['kind']}": {"optimiser": section}
        for section in (
            {"kind": "adamw", "betas": [0.9, 0.98], "weight_decay": 0.05},
            {"kind": "adam", "betas": [0.9, 0.98], "weight_decay": 5e-7},
            {"kind": "sgd", "momentum": 0.9, "nesterov": False, "weight_decay": 1e-4},
        )
    },
    **{
        f"average {section['kind']}": {"average": section}
        for section in (
            {"kind": "none"},
            {"kind": "ema", "decay": 0.9},
            {"kind": "last", "epochs": 1},
            {"kind": "epochs", "first": 1, "last": 2},
        )
    },
    **{f"precision {value}": {"precision": value} for value in ("float32", "bfloat16", "float16")},
    **{f"sampling {value}": {"sampling": value} for value in ("shuffled", "balanced")},
    **{f"batch_norm {value}": _freezing([{"train": ["head"]}], value) for value in ("frozen", "updated")},
    **{
        f"epoch_metric {value}": {"epoch_metric": value, "keep_best": True}
        for value in ("loss", "accuracy", "mAP", "auc", "precision", "recall", "f1", "d_prime")
    },
}


@pytest.mark.parametrize("changes", CHOICES.values(), ids=CHOICES)
def test_every_value_of_every_choice_trains(tmp_path: Path, changes: Section) -> None:
    """For two steps, one an epoch."""
    options: dict[str, Any] = {"epochs": 2, "examples": make_examples(8), "validation": make_examples(6)}
    _, trained = train_small(tmp_path / "c", score=epoch_scorer("one"), **options, **changes)
    assert len(trained.history) == 2
    assert all(math.isfinite(row["loss"]) for row in trained.history)


def _published(**changes: Any) -> NetworkParams:
    section = network("frames", "patches", "transformer", "class_distillation", stem__positions=POSITIONS, **changes)
    params = validate_model_params("tested", section)
    assert isinstance(params, NetworkParams)
    return params.model_copy(update={"pretrained": OriginalParams.model_validate(PUBLISHED)})


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({"learning_rate": 2e-3}, True),
        ({"learning_rate": 2.5e-4}, False),  # AST on speech commands
        ({"learning_rate": 2e-3, "rates": SETTINGS["rates"] | {"encoder": 0.05}}, False),
        ({"learning_rate": 2e-3, **_freezing([{"train": ["head"]}])}, False),
        ({"learning_rate": 2e-3, **_freezing([{"epochs": 1, "train": ["head"]}, {"train": "all"}])}, True),
        (
            {
                "learning_rate": 0.1,
                "optimiser": {"kind": "sgd", "momentum": 0.9, "nesterov": False, "weight_decay": 0.0},
            },
            False,
        ),
        ({"learning_rate": 2e-3, "lora": {"rank": 4, "alpha": 8, "dropout": 0.0, "targets": ["qkv"]}}, False),
    ],
)
def test_a_rate_for_random_weights_is_warned_of_with_pretrained_ones(changes: Section, warned: bool) -> None:
    train = TrainParams.model_validate(SETTINGS | changes)
    remark = rate_remark(_published(), train)
    assert bool(remark) == warned
    if remark:
        assert "train.learning_rate 0.002 is above 0.00025" in remark


def test_random_weights_may_have_any_rate() -> None:
    params = validate_model_params("tested", network("frames"))
    assert isinstance(params, NetworkParams)
    assert rate_remark(params, TrainParams.model_validate(SETTINGS | {"learning_rate": 1.0})) is None
