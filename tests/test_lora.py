"""Low-rank adapters by peft: what they train, and that the stored network is one without them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from networks import build, make_inputs, network
from test_training import make_model, train_small

from pipeline.errors import ParamsError
from pipeline.training.lora import LoraParams, add_adapters, merge_adapters

PARAMS = LoraParams(rank=4, alpha=8, dropout=0.0, targets=["qkv", "proj"])


def _transformer() -> Any:
    return build(network("frames", "patches", "transformer", "class_distillation"))


def _adapted() -> Any:
    pytest.importorskip("peft", reason="needs peft, an optional package: pip install peft")
    model = _transformer()
    torch.manual_seed(0)
    add_adapters(model, PARAMS)
    return model


def test_merged_adapters_are_those_of_peft() -> None:
    model = _adapted()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    plain = _transformer()
    merged = merge_adapters(model.state_dict(), PARAMS)
    assert list(merged) == list(plain.state_dict())
    plain.load_state_dict(merged)
    frames, mask = make_inputs("frames", [40, 60])
    expected = model.eval()(frames, mask)
    torch.testing.assert_close(plain.eval()(frames, mask), expected, atol=1e-5, rtol=0)
    assert not torch.allclose(_transformer().eval()(frames, mask), expected, atol=1e-3)


def test_new_adapters_change_nothing_and_the_head_alone_is_trained_beside_them() -> None:
    model, before = _adapted(), _transformer().state_dict()
    merged = merge_adapters(model.state_dict(), PARAMS)
    assert all(torch.equal(merged[name], value) for name, value in before.items())
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert {name for name in trained if "lora_" not in name} == {
        "head.norm.weight", "head.norm.bias", "head.classify.weight", "head.classify.bias"
    }  # fmt: skip
    assert sum("lora_" in name for name in trained) == 2 * 2 * 2  # blocks, maps, adapters


def test_the_adapters_of_a_run_are_trained_and_its_other_weights_are_not(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="needs peft, an optional package: pip install peft")
    before, model = make_model().state_dict(), make_model()
    add_adapters(model, PARAMS)
    lora = PARAMS.model_dump()
    model, trained = train_small(tmp_path / "c", model=model, lora=lora, checkpoint_ensemble=[2, 4])
    merged = merge_adapters(model.state_dict(), PARAMS)
    changed = {name for name, value in before.items() if not torch.equal(merged[name], value)}
    assert changed == {
        *(f"encoder.blocks.{block}.{name}.weight" for block in range(2) for name in PARAMS.targets),
        "head.classify.weight", "head.classify.bias",
    }  # fmt: skip
    assert set(merge_adapters(trained.kept[2], PARAMS)) == set(before)


def test_targets_that_the_encoder_has_not_are_named() -> None:
    params = PARAMS.model_copy(update={"targets": ["query"]})
    message = r"train\.lora\.targets: expected linear maps of the encoder, found query; it has: qkv, proj, fc1, fc2$"
    with pytest.raises(ParamsError, match=message):
        add_adapters(_transformer(), params)
    with pytest.raises(ParamsError, match="found qkv; it has: none"):
        add_adapters(build(network("frames", "identity", "cnn", "mean")), PARAMS)
