"""One step of training: accumulated, compiled, in half precision, with positions left out, by every optimiser."""

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import ENCODERS
from pydantic import TypeAdapter
from test_training import PLAIN, SETTINGS, make_examples, make_model, train_small
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from pipeline.models.encoders import transformer
from pipeline.models.network import drop_positions
from pipeline.training import step as step_module
from pipeline.training.batches import Batch
from pipeline.training.classification import Classification
from pipeline.training.distributed import ALONE
from pipeline.training.loop import training_options
from pipeline.training.losses import loss_of
from pipeline.training.optimiser import OptimiserParams, build_optimiser, set_rate
from pipeline.training.settings import TrainParams
from pipeline.training.step import Learner, compiled

POSITIONS = {"kind": "sinusoidal"}
PATCHES = {"kind": "patches", "frames": 8, "bands": 3, "stride_frames": 4, "stride_bands": 3, "positions": POSITIONS}
EXACT = {"augmentation": PLAIN, "gradient_clip": None}


def step(model_changes: dict[str, Any] | None = None, **changes: Any) -> Any:
    """Take one step on eight clips; return the loss, the norm and the gradients by name."""
    model = make_model({"stem": PATCHES, "encoder.drop_path": 0.0} | (model_changes or {}))
    params = TrainParams.model_validate(SETTINGS | EXACT | changes)
    examples = make_examples(8)
    learner = Learner(model, params, Classification(params, loss_of("one"), 1, None), ALONE)
    micro_batches = torch.tensor_split(torch.arange(8), params.accumulate)
    torch.manual_seed(0)
    with training_options(model.train(), params):
        loss, norm = learner.step(
            [(examples.batches.take(rows.tolist()), examples.targets[rows]) for rows in micro_batches], 8, 1e-3
        )
    return loss, norm, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("count", [2, 3, 8])
def test_a_batch_in_micro_batches_is_the_batch(count: int) -> None:
    """Without batch norm; micro-batches of 3, 3 and 2 clips taken as equals would be off by more."""
    loss, norm, gradients = step()
    loss_accumulated, norm_accumulated, found = step(accumulate=count)
    assert loss_accumulated == pytest.approx(loss, rel=1e-5)
    assert norm_accumulated == pytest.approx(norm, rel=1e-4)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6)


def test_activation_checkpointing_gives_the_same_loss_and_gradients() -> None:
    """Drop path draws the same numbers the second time."""
    loss, _, gradients = step({"encoder.drop_path": 0.5})
    again, _, found = step({"encoder.drop_path": 0.5}, activation_checkpointing=True)
    assert again == loss
    for name, gradient in gradients.items():
        assert torch.equal(found[name], gradient), name


def test_activation_checkpointing_runs_every_block_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    attend = transformer.self_attention
    monkeypatch.setattr(transformer, "self_attention", lambda *arguments: calls.append(0) or attend(*arguments))  # type: ignore[func-returns-value]
    step()
    once = len(calls)
    step(activation_checkpointing=True)
    assert len(calls) == 3 * once


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_near_and_keeps_weights_and_gradients_whole(precision: str) -> None:
    loss, _, gradients = step()
    low, _, found = step(precision=precision)
    assert low == pytest.approx(loss, rel=0.02)
    assert low != loss
    for name, gradient in gradients.items():
        assert found[name].dtype == torch.float32
        if gradient.norm() > 0.01:
            assert torch.cosine_similarity(found[name].flatten(), gradient.flatten(), dim=0) > 0.95, name


def test_a_compiler_that_fails_is_named_and_the_run_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []

    def broken(function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            calls.append(arguments)
            raise TorchDynamoException("no C++ compiler")

        return call

    monkeypatch.setattr(step_module.torch, "compile", broken)
    double = compiled(lambda value: 2 * value)
    with caplog.at_level(logging.WARNING):
        assert [double(1), double(2)] == [2, 4]
    assert len(calls) == 1
    assert [record.message for record in caplog.records] == [
        "train.compile: expected torch.compile to work, found TorchDynamoException: no C++ compiler; training goes on "
        "without it, more slowly (it needs a C++ compiler, and on GPUs Triton)"
    ]


def test_a_mistake_of_the_model_is_no_compilers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_module.torch, "compile", lambda function: function)

    def wrong(_value: int) -> int:
        raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match="shapes"):
        compiled(wrong)(1)


@pytest.mark.slow
def test_a_compiled_model_takes_the_same_step() -> None:
    small = {"stem": {"kind": "linear"}, "encoder.depth": 1}  # most of two minutes is the compiler's
    loss, norm, _ = step(small)
    again, norm_again, _ = step(small, compile=True)
    assert (again, norm_again) == pytest.approx((loss, norm), rel=1e-4)


def test_mixed_labels_of_one_class_clips_train_towards_both_and_never_towards_the_first() -> None:
    """Peer bug 1.3.3: with cross entropy, mixed targets were cut to integers, and every mixture became class 0."""

    logits = nn.Parameter(torch.zeros(4, 3))
    options = PLAIN | {"mixup_probability": 1.0}
    params = TrainParams.model_validate(SETTINGS | {"label_smoothing": 0.0, "augmentation": options})
    targets = torch.tensor([[0.0, 1, 0], [0, 0, 1], [0, 1, 0], [0, 0, 1]])
    batch = Batch(torch.zeros(4, 5, 6), None, torch.arange(4))
    torch.manual_seed(1)
    loss, _ = Classification(params, loss_of("one"), 1, None).loss(
        make_model(), lambda _features, _mask: logits * 1, batch, targets
    )
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad[:, 0], torch.full((4,), 1 / 3 / 4))  # away from the class of none
    wanted = 1 / 3 - 4 * logits.grad[:, 1:]
    torch.testing.assert_close(wanted.sum(1), torch.ones(4))
    assert ((wanted > 0.01) & (wanted < 0.99)).any()


@pytest.mark.parametrize(
    ("label_kind", "expected"),
    [
        # Probabilities 1/2, 1/4, 1/4; targets 1, 0, 0 become 0.8, 0.1, 0.1.
        ("one", 0.8 * math.log(2) + 0.2 * math.log(4)),
        # Probabilities 2/3, 1/2, 1/2; targets 1, 0, 0 become 0.85, 0.15, 0.15.
        ("many", (0.85 * math.log(3 / 2) + 0.15 * math.log(3) + 2 * math.log(2)) / 3),
    ],
)
def test_labels_are_smoothed_in_the_loss(label_kind: Any, expected: float) -> None:
    logits = torch.tensor([[math.log(2), 0.0, 0.0]])
    batch = Batch(torch.zeros(1, 5, 6), None, torch.arange(1))
    params = TrainParams.model_validate(SETTINGS | {"label_smoothing": 0.3, "augmentation": PLAIN})
    loss, _ = Classification(params, loss_of(label_kind), 1, None).loss(
        make_model(), lambda _features, _mask: logits, batch, torch.eye(3)[:1]
    )
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_dropped_positions_are_other_ones_in_every_clip_and_the_mask_follows() -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([20, 9, 1])
    mask = torch.arange(20) < lengths[:, None]
    positions = torch.where(mask, torch.arange(20).expand(3, -1), -1)[:, :, None].float()
    shown, kept = drop_positions(positions, mask, 0.3)
    assert kept is not None
    assert shown.shape == (3, 14, 1)
    assert kept.sum(1).tolist() == [14, 7, 1]  # 6 of 20, 2 of 9 and none of 1 are dropped
    for clip, real, length in zip(shown[:, :, 0], kept, lengths, strict=True):
        values = clip[real].tolist()
        assert values == sorted(set(values))  # in order, for encoders to which it matters
        assert set(values) <= set(range(int(length)))
    assert not torch.equal(shown[0, :7].sort(0).values, shown[1, :7].sort(0).values)
    without, none = drop_positions(positions, None, 0.3)
    assert none is None
    assert without.shape == (3, 14, 1)


@pytest.mark.parametrize("encoder", ["transformer", "conformer", "lstm"])
def test_patchout_hides_positions_in_training_alone_and_until_it_ends(encoder: str) -> None:
    """Whatever the encoder: once it was left to transformers, and silently to them alone."""
    model = make_model({"stem": PATCHES, "encoder": ENCODERS[encoder]})
    seen: list[int] = []
    model.encoder.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].shape[1]))
    frames = torch.zeros(2, 30, 6)
    with training_options(model, TrainParams.model_validate(SETTINGS | {"patchout": 0.5})):
        model.train()(frames, None)
        model.eval()(frames, None)
    model.train()(frames, None)
    assert seen == [6, 12, 12]


def test_settings_without_effect_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked = {"epochs": 1, "patchout": 0.5, "activation_checkpointing": True}
    for encoder in ENCODERS:
        caplog.clear()
        stem = {"kind": "linear" if "width" in ENCODERS[encoder] else "identity"}
        model = make_model({"stem": stem, "encoder": ENCODERS[encoder]})
        train_small(tmp_path / encoder, model=model, **asked)
        found = {record.args[0] for record in caplog.records if "no effect" in record.message}  # type: ignore[index]
        expected = {
            *(["patchout"] if encoder in ("cnn", "timm") else []),
            *([] if encoder in ("transformer", "conformer") else ["activation_checkpointing"]),
        }
        assert found == expected, encoder
        assert (model.patchout, model.encoder.activation_checkpointing) == (0.0, False)


@pytest.mark.parametrize(
    ("section", "oracle"),
    [
        ({"kind": "adam", "betas": [0.95, 0.999], "weight_decay": 0.1}, torch.optim.Adam),
        ({"kind": "adamw", "betas": [0.95, 0.999], "weight_decay": 0.1}, torch.optim.AdamW),
        ({"kind": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}, torch.optim.SGD),
    ],
    ids=["adam", "adamw", "sgd"],
)
def test_optimisers_are_torchs_and_decay_what_they_say(section: dict[str, Any], oracle: Any) -> None:
    """Adam of the published recipes decays every weight; the others leave norms and biases alone."""

    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))

    ours, theirs = model(), model()
    params: Any = TypeAdapter(OptimiserParams).validate_python(section)
    optimiser = build_optimiser(ours, params, 1.0, embedding_rate=1.0)
    options = {key: value for key, value in section.items() if key not in ("kind", "weight_decay")}
    decay_of_vectors = 0.1 if section["kind"] == "adam" else 0.0
    groups = [
        {"params": [p for p in theirs.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in theirs.parameters() if p.ndim == 1], "weight_decay": decay_of_vectors},
    ]
    expected = oracle(groups, lr=0.01, **options)
    for seed in range(3):
        torch.manual_seed(seed)
        inputs = torch.randn(5, 3)
        for network, stepper in ((ours, optimiser), (theirs, expected)):
            stepper.zero_grad()
            network(inputs).square().sum().backward()
            set_rate(optimiser, 0.01)
            stepper.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other)
