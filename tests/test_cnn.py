"""The convolutional encoder beyond the contract of test_models.py: its size, its pooling, its place in the base."""

from typing import Any

import torch
from conftest import REPOSITORY
from networks import build

from pipeline.params import read_params

BASE = read_params(REPOSITORY / "recipes" / "base.yaml")


def _build(num_classes: int) -> Any:
    return build(BASE["models"]["cnn"], {"n_mels": 128}, num_classes)


def test_the_base_describes_a_network_of_0_3_million_parameters() -> None:
    assert sum(p.numel() for p in _build(10).parameters()) == 318_314


def test_logits_come_from_mean_and_maximum_of_the_real_positions() -> None:
    model = _build(3).eval()
    frames = torch.randn(2, 50, 128)
    mask = torch.arange(50) < torch.tensor([[50], [37]])
    with torch.no_grad():
        logits = model(frames, mask)
        for row, length in enumerate((50, 37)):
            maps, _ = model.encoder.stack(frames[row : row + 1, :length], None)
            assert maps.shape == (1, 192, -(-length // 16), 8)
            features = torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1)
            torch.testing.assert_close(logits[row], model.head.classify(features)[0], atol=1e-5, rtol=1e-5)


def test_a_louder_network_of_padding_is_not_heard() -> None:
    """Batch norms that have seen data turn zeros into other values; behind a clip they are zero again at every layer."""
    model = _build(3).eval()
    for norm in model.encoder.stack.norms:
        torch.nn.init.normal_(norm.bias)
        torch.nn.init.normal_(norm.running_mean)
    frames = torch.randn(1, 45, 128)
    with torch.no_grad():
        padded = model(torch.nn.functional.pad(frames, (0, 0, 0, 77), value=9.0), torch.arange(122)[None] < 45)
        torch.testing.assert_close(padded, model(frames, None), atol=1e-4, rtol=1e-4)
