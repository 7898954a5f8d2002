"""Networks of timm and attention over time, beyond the contract of test_models.py; tests named after a bug are a peer's."""

from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from networks import build, changed, params_of
from safetensors.torch import save_file
from test_training import SETTINGS, Memory
from torch import nn

from pipeline.artifacts.files import file_digest
from pipeline.errors import ParamsError, SonolexError
from pipeline.models.encoders.identity import Identity as IdentityEncoder
from pipeline.models.encoders.identity import IdentityParams as IdentityEncoderParams
from pipeline.models.encoders.timm_network import TimmNetwork, TimmParams
from pipeline.models.heads.attention import AttentionParams, AttentionPooling
from pipeline.models.inputs.frames import Frames, FramesParams
from pipeline.models.network import Network, open_pretrained_weights
from pipeline.models.stems.identity import Identity, IdentityParams
from pipeline.training.distributed import init_distributed
from pipeline.training.loop import TrainParams
from pipeline.training.neural import train_model
from pipeline.training.trainers import Examples, TrainingData

SMALL = "mobilenetv3_small_050"
SECTION: dict[str, Any] = {
    "kind": "network",
    "input": {"kind": "frames", "normalisation": "corpus", "std_scale": 1.0},
    "stem": {"kind": "identity"},
    "encoder": {"kind": "timm", "network": SMALL, "drop_path": 0.0},
    "head": {"kind": "attention", "heads": 2},
    "pretrained": None,
}
# One of each family: symmetric and TensorFlow's padding, with and without squeeze-and-excitation, maximum pooling.
FAMILIES = (SMALL, "mobilenetv2_050", "efficientnet_b0", "tf_efficientnet_b0", "resnet50")


def _build(num_classes: int = 5, network: str = SMALL, heads: int = 2) -> Any:
    section = changed(SECTION, {"encoder.network": network, "head.heads": heads})
    return build(section, {"n_mels": 32}, num_classes)


def _stem(num_features: int = 32) -> Identity:
    frames = Frames(FramesParams(kind="frames", normalisation="none", std_scale=1.0), {"n_mels": num_features})
    return Identity(IdentityParams(kind="identity"), frames, None)


def _encoder(name: str) -> TimmNetwork:
    """Return an encoder whose norms have seen data: untrained ones map zero to zero, and could hide a leak."""
    torch.manual_seed(0)
    encoder = TimmNetwork(TimmParams(kind="timm", network=name, drop_path=0.0), _stem())
    for layer in encoder.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.0)
            nn.init.normal_(layer.bias, std=0.5)
            nn.init.normal_(layer.running_mean, std=0.5)  # type: ignore[arg-type]
    return encoder


def _pooling(num_features: int, num_classes: int, heads: int) -> AttentionPooling:
    stem = _stem(num_features)
    encoder = IdentityEncoder(IdentityEncoderParams(kind="identity"), stem)
    return AttentionPooling(AttentionParams(kind="attention", heads=heads), stem, encoder, num_classes)


@pytest.mark.parametrize(
    ("network", "heads", "num_classes", "expected"),
    [
        ("efficientnet_b2", 4, 527, 13_640_766),  # 7,700,418 + 4 heads * 2 * 1409 * 527 + 4 weights of heads
        ("tf_efficientnet_b2", 4, 200, 9_954_822),  # FSD50K
        ("efficientnet_b2", 1, 527, 9_185_504),  # one head needs no weight
        ("efficientnet_b0", 0, 527, 4_682_059),  # the mean needs no attention
    ],
)
def test_parameters_are_those_published(network: str, heads: int, num_classes: int, expected: int) -> None:
    model = _build(num_classes, network, heads)
    assert sum(p.numel() for p in model.parameters()) == expected


@pytest.mark.parametrize("heads", [0, 1, 3])
def test_logits_are_those_of_the_pooled_probability(heads: int) -> None:
    torch.manual_seed(0)
    pooling = _pooling(16, 7, heads).double()
    if pooling.head_weights is not None:
        nn.init.normal_(pooling.head_weights)
    x = torch.randn(4, 9, 16, dtype=torch.float64)
    scores = pooling.score(x).sigmoid().view(4, 9, -1, 7)
    attention = torch.ones_like(scores) if pooling.attend is None else pooling.attend(x).sigmoid().view(4, 9, -1, 7)
    by_head = (scores * attention / attention.sum(1, keepdim=True)).sum(1)
    weights = torch.ones(1) if pooling.head_weights is None else pooling.head_weights.softmax(0)
    expected = (by_head * weights[:, None]).sum(1).logit()
    torch.testing.assert_close(pooling(x, None), expected)


def test_heads_are_averaged_alike_at_the_load() -> None:
    pooling = _pooling(16, 7, 4)
    assert pooling.head_weights is not None
    assert pooling.head_weights.softmax(0).tolist() == [0.25] * 4


def test_certain_probabilities_keep_their_logits_and_gradients() -> None:
    """Where a probability is 1 - 1e-40, it rounds to 1: clamping it ends learning, its logit does not."""
    pooling = _pooling(1, 2, 2)
    nn.init.zeros_(pooling.score.weight)
    with torch.no_grad():
        pooling.score.bias.copy_(torch.tensor([90.0, -90.0, 90.0, -90.0]))
    logits = pooling(torch.ones(1, 3, 1), None)
    torch.testing.assert_close(logits, torch.tensor([[90.0, -90.0]]))
    wrong = torch.tensor([[0.0, 1.0]])
    nn.functional.binary_cross_entropy_with_logits(logits, wrong).backward()
    torch.testing.assert_close(pooling.score.bias.grad, torch.tensor([0.25, -0.25, 0.25, -0.25]))


@pytest.mark.parametrize("name", FAMILIES)
def test_padding_reaches_no_layer(name: str) -> None:
    encoder = _encoder(name).eval()
    frames = torch.randn(2, 70, 32)
    mask = torch.arange(70) < torch.tensor([[70], [41]])
    frames = frames.masked_fill(~mask[:, :, None], 9.0)
    with torch.no_grad():
        maps, real = encoder(frames, mask)
        for row, length in enumerate((70, 41)):
            alone, _ = encoder(frames[row : row + 1, :length], None)
            together = maps[row : row + 1][real[row : row + 1]][None]
            scale = alone.abs().max().item()
            torch.testing.assert_close(together, alone, atol=1e-5 * scale, rtol=1e-4)


def test_padding_in_a_training_batch_changes_no_step() -> None:
    """In float64: norms over the few positions at the end of the network magnify float32's rounding."""
    padded, plain = _build().double().train(), _build().double().train()
    frames = torch.randn(4, 64, 32, dtype=torch.float64)
    logits = padded(nn.functional.pad(frames, (0, 0, 0, 100)), torch.arange(164).expand(4, -1) < 64)
    expected = plain(frames, None)
    torch.testing.assert_close(logits, expected)
    for result in (logits, expected):
        result[:, 0].sum().backward()
    for (name, p), q in zip(padded.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=lambda text, name=name: f"{name}: {text}")
    for one, other in zip(padded.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_feature_map_without_padding_is_read_as_by_timm(name: str) -> None:
    encoder = _encoder(name).eval()
    own = timm.create_model(name, in_chans=1, num_classes=0, global_pool="").eval()
    own.load_state_dict(encoder.network.state_dict())
    frames = torch.randn(2, 64, 32)
    with torch.no_grad():
        expected = own(frames.transpose(1, 2)[:, None]).mean(2).transpose(1, 2)
        torch.testing.assert_close(encoder(frames, None)[0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("network", [SMALL, "tf_efficientnet_b0"])
def test_every_length_is_read_bug_2_3_3(network: str) -> None:
    model = _build(network=network).eval()
    with torch.no_grad():
        for length in (1, 2, 31, 32, 33, 65):
            for bands in (1, 32, 40):
                logits = model(torch.randn(2, length, bands), None)
                assert logits.shape == (2, 5)
                assert torch.isfinite(logits).all()


@pytest.mark.parametrize("network", ["mobilenetv2_100", "mobilenetv3_small_100", "resnet50"])
def test_every_network_trains_bugs_2_3_2_and_2_3_3(network: str) -> None:
    model = _build(network=network, heads=1).train()
    model(torch.randn(2, 40, 32), None).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("heads", [0, 1, 2, 3])
def test_heads_are_as_many_as_said_bug_2_3_4(heads: int) -> None:
    pooling = _build(heads=heads).head
    assert pooling.score.out_features == 5 * max(heads, 1)
    assert (pooling.attend is None) == (heads == 0)
    assert pooling.head_weights is None or pooling.head_weights.shape == (heads,)


def _rgb_file(path: Path, name: str = SMALL) -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    weights: dict[str, torch.Tensor] = timm.create_model(name, num_classes=10).state_dict()
    if path.suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path)
    return weights


def _load(model: Network, source: Path | str, digest: str | None = None) -> str:
    """Load weights into a network as training does, and return the digest that it keeps of them."""
    params = params_of(SECTION | {"pretrained": {"kind": "timm", "source": str(source), "digest": digest}})
    checkpoint = open_pretrained_weights(params, {})
    assert checkpoint is not None
    model.load_weights(params, checkpoint)
    return checkpoint.metadata["digest"]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_imagenet_weights_are_summed_over_the_colours_bug_2_3_5(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rgb{suffix}"
    rgb = _rgb_file(path)
    model = _build()
    before = model.encoder.network.state_dict()["conv_stem.weight"].clone()
    _load(model, path)
    started = model.encoder.network.state_dict()
    assert started["conv_stem.weight"].shape[1] == 1
    assert not torch.equal(started["conv_stem.weight"], before)
    torch.testing.assert_close(started["conv_stem.weight"], rgb["conv_stem.weight"].sum(1, keepdim=True))
    for name, values in started.items():
        assert name == "conv_stem.weight" or torch.equal(values, rgb[name]), name
    # A grey image, three times over, is to the RGB stem what the image is to ours.
    grey = torch.randn(1, 1, 20, 20)
    stem = model.encoder.network.conv_stem
    as_rgb = nn.functional.conv2d(grey.expand(-1, 3, -1, -1), rgb["conv_stem.weight"], stride=2, padding=1)
    torch.testing.assert_close(stem(grey), as_rgb, atol=1e-5, rtol=1e-4)


def test_timm_sums_the_stem_as_we_do(tmp_path: Path) -> None:
    path = tmp_path / "rgb.safetensors"
    _rgb_file(path)
    _load(model := _build(), path)
    overlay = {"file": str(path), "num_classes": 10}
    own = timm.create_model(SMALL, pretrained=True, pretrained_cfg_overlay=overlay, in_chans=1, num_classes=0)
    for name, values in own.state_dict().items():
        torch.testing.assert_close(model.encoder.network.state_dict()[name], values)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    _rgb_file(path, "mobilenetv2_050")
    with pytest.raises(
        SonolexError, match=r"other\.safetensors: expected the \d+ tensors of the encoder, found \d+ that"
    ):
        _load(_build(), path)


def test_weights_that_have_changed_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rgb.safetensors"
    _rgb_file(path)
    digest = _load(_build(), path)
    assert _load(_build(), path, digest) == digest
    with pytest.raises(SonolexError, match=rf"pretrained\.digest: .* expected {'0' * 32}, found {digest}"):
        _load(_build(), path, "0" * 32)


def test_weights_of_unknown_name_name_those_of_timm() -> None:
    with pytest.raises(
        SonolexError, match=rf"pretrained\.source: expected a file, .*{SMALL}\.lamb_in1k.*found '{SMALL}'"
    ):
        _load(_build(), SMALL)


def test_imagenet_without_a_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(SonolexError, match=rf"{SMALL}\.lamb_in1k.*without a network fetch the files elsewhere"):
        _load(_build(), f"{SMALL}.lamb_in1k")


def test_training_begins_at_the_weights_and_the_model_keeps_their_digest(tmp_path: Path) -> None:
    path = tmp_path / "rgb.safetensors"
    rgb = _rgb_file(path)
    weights_of = {"kind": "timm", "source": str(path), "digest": None}
    section = changed(SECTION, {"pretrained": weights_of, "input.normalisation": "none"})
    inputs = Memory(6)
    training = Examples(list(inputs.clips), np.eye(3, dtype=np.float32)[np.arange(6) % 3])
    data = TrainingData(inputs, training, Examples([], np.zeros((0, 3), np.float32)), "one", None, None, list("abc"))
    settings = TrainParams.model_validate(SETTINGS | {"epochs": 1, "learning_rate": 1e-9})
    with init_distributed() as context:
        weights, _, metadata, _, _ = train_model(
            params_of(section), settings, data,
            seed=0, curves_path=tmp_path / "live", context=context, score=lambda scores, targets: {},
        )  # fmt: skip
    summed = rgb["conv_stem.weight"].sum(1, keepdim=True).numpy()
    np.testing.assert_allclose(weights["encoder.network.conv_stem.weight"], summed, atol=1e-5)
    assert metadata["pretrained"] == {"digest": file_digest(path)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"encoder.network": "efficientnet_b9"},
            r"models\.tested\.encoder\.network: expected one of efficientnet_b0, .*b9'",
        ),
        ({"head.heads": -1}, r"models\.tested\.head\.heads: input should be greater than or equal to 0"),
        ({"pretrained": "imagenet"}, r"models\.tested\.pretrained: "),
        ({"encoder.drop_path": 1.0}, r"models\.tested\.encoder\.drop_path: input should be less than 1"),
    ],
)
def test_wrong_params_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        params_of(changed(SECTION, changes))
