"""Deep heads beyond the contract of test_models.py: additive attention by hand, dropout, and one head for each class."""

from typing import Any

import pytest
import torch
from networks import ENCODERS, build, make_inputs, network
from torch import nn

from pipeline.models.heads.deep import AdditiveAttention, perceptron

STEMS = {"transformer": "linear", "conformer": "linear", "lstm": "linear"}


def with_head(encoder: str, **settings: Any) -> Any:
    """Return a network with an encoder and a deep head."""
    head = {"kind": "deep", "pooling": "mean", "hidden": [16], "dropout": 0.0} | settings
    return network("frames", STEMS.get(encoder, "identity"), encoder) | {"head": head}


def test_additive_attention_is_a_softmax_over_the_real_positions() -> None:
    torch.manual_seed(0)
    attention = AdditiveAttention(6)
    x, mask = torch.randn(2, 5, 6), torch.arange(5) < torch.tensor([5, 3])[:, None]
    weights = attention(x, mask)
    torch.testing.assert_close(weights.sum(1), torch.ones(2))
    assert not weights[1, 3:].any()
    w, b, v = attention.project.weight, attention.project.bias, attention.score.weight[0]
    expected = torch.stack([torch.exp(v @ torch.tanh(w @ position + b)) for position in x[1, :3]])
    torch.testing.assert_close(weights[1, :3], expected / expected.sum())


@pytest.mark.parametrize("pooling", ["mean", "mean_max", "additive"])
@pytest.mark.parametrize("encoder", [*ENCODERS])
@pytest.mark.parametrize("kind", ["deep", "per_class"])
def test_every_encoder_takes_every_deep_head(kind: str, encoder: str, pooling: str) -> None:
    model = build(with_head(encoder, kind=kind, pooling=pooling)).eval()
    assert model(*make_inputs("frames", [64, 40])).shape == (2, 7)


@pytest.mark.parametrize("hidden", [[], [16], [16, 12, 8]])
def test_logits_are_never_dropped(hidden: list[int]) -> None:
    layers = perceptron([6, *hidden, 3], dropout=0.9)
    assert isinstance(layers[-1], nn.Linear)
    assert [layer.out_features for layer in layers if isinstance(layer, nn.Linear)] == [*hidden, 3]
    assert sum(isinstance(layer, nn.Dropout) for layer in layers) == len(hidden)
    assert layers.train()(torch.randn(50, 6)).all()


def test_a_class_is_added_by_adding_a_head_and_frozen_heads_keep_their_weights() -> None:
    section = with_head("cnn", kind="per_class", pooling="additive")
    before, after = build(section, num_classes=3).eval(), build(section, num_classes=4, seed=1)
    frames, mask = make_inputs("frames", [64, 40])
    missing = after.load_state_dict(before.state_dict(), strict=False).missing_keys
    assert missing
    assert all(name.startswith("head.classes.3.") for name in missing)
    torch.testing.assert_close(after.eval()(frames, mask)[:, :3], before(frames, mask), atol=0, rtol=0)

    for name, parameter in after.named_parameters():
        parameter.requires_grad = name.startswith("head.classes.3.")
    optimiser = torch.optim.AdamW([p for p in after.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    after(frames, mask).square().sum().backward()
    optimiser.step()
    torch.testing.assert_close(after(frames, mask)[:, :3], before(frames, mask), atol=0, rtol=0)
    begun = build(section, num_classes=4, seed=1)
    assert not torch.equal(after.head.classes[3].layers[1].weight, begun.head.classes[3].layers[1].weight)


def test_the_weights_of_classes_are_their_own() -> None:
    model = build(with_head("identity", kind="per_class", pooling="additive"))
    model(*make_inputs("frames", [20]))[:, 2].sum().backward()
    learned = {name.split(".")[1] for name, p in model.head.named_parameters() if p.grad is not None and p.grad.any()}
    assert learned == {"2"}
