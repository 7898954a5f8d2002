"""Networks of timm and attention over time, beyond the contract of test_models.py; tests named after a bug are a peer's."""

from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from networks import build, changed, params_of
from psla_authors import make_psla
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
from pipeline.models.network import Network, fit_normalisation, open_pretrained_weights
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
    "encoder": {"kind": "timm", "network": SMALL, "drop_path": 0.0, "norm_epsilon": None, "norm_momentum": None},
    "head": {"kind": "attention", "heads": 2},
    "window": None,
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
    params = TimmParams(kind="timm", network=name, drop_path=0.0, norm_epsilon=None, norm_momentum=None)
    encoder = TimmNetwork(params, _stem())
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


def _train(path: Path, tmp_path: Path, rate: float) -> tuple[Any, Any]:
    """Train an epoch on from the weights at `path`, and return the new ones and the metadata of the input."""
    weights_of = {"kind": "timm", "source": str(path), "digest": None}
    section = changed(SECTION, {"pretrained": weights_of, "input.normalisation": "none"})
    inputs = Memory(6)
    training = Examples(list(inputs.clips), np.eye(3, dtype=np.float32)[np.arange(6) % 3])
    data = TrainingData(inputs, training, Examples([], np.zeros((0, 3), np.float32)), "one", None, None, list("abc"))
    settings = TrainParams.model_validate(SETTINGS | {"epochs": 1, "learning_rate": rate})
    with init_distributed() as context:
        weights, _, metadata, _, _ = train_model(
            params_of(section), settings, data,
            seed=0, curves_path=tmp_path / "live", context=context, score=lambda scores, targets: {},
        )  # fmt: skip
    return weights, metadata


@pytest.mark.parametrize(("rate", "warns"), [(2e-3, True), (1e-3, False)])
def test_a_rate_above_all_published_ones_is_warned_of(
    tmp_path: Path, rate: float, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "rgb.safetensors"
    _rgb_file(path)
    _train(path, tmp_path, rate)
    assert ("train.learning_rate 0.002 is above 0.001" in caplog.text) == warns


def test_training_begins_at_the_weights_and_the_model_keeps_their_digest(tmp_path: Path) -> None:
    path = tmp_path / "rgb.safetensors"
    rgb = _rgb_file(path)
    weights, metadata = _train(path, tmp_path, 1e-9)
    summed = rgb["conv_stem.weight"].sum(1, keepdim=True).numpy()
    np.testing.assert_allclose(weights["encoder.network.conv_stem.weight"], summed, atol=1e-5)
    assert metadata["pretrained"] == {"digest": file_digest(path)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"encoder.network": "efficientnet_b9"},
            r"models\.tested\.encoder\.network: expected one of .*efficientnet_b0, .*b9'",
        ),
        ({"head.heads": -1}, r"models\.tested\.head\.heads: input should be greater than or equal to 0"),
        ({"pretrained": "imagenet"}, r"models\.tested\.pretrained: "),
        ({"encoder.drop_path": 1.0}, r"models\.tested\.encoder\.drop_path: input should be less than 1"),
    ],
)
def test_wrong_params_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        params_of(changed(SECTION, changes))


# the authors' checkpoints

MEAN, STD = -4.6476, 4.5699
FRONT_END = {"front_end": "kaldi", "sample_rate": 16000, "win_length": 400, "hop_length": 160, "n_mels": 128}
PUBLISHED = changed(
    SECTION,
    {
        "input": {"kind": "frames", "normalisation": "pretrained", "std_scale": 1.0},
        "stem": {"kind": "fixed_length", "frames": 352, "fill": "zero"},
        "encoder": {
            "kind": "timm",
            "network": "efficientnet_b0",
            "drop_path": 0.2,
            "norm_epsilon": 1e-3,
            "norm_momentum": 0.01,
        },
        "head.heads": 4,
    },
)


def _write_authors(path: Path, size: int = 0, num_classes: int = 5, heads: int = 4) -> nn.Module:
    oracle = make_psla(size, num_classes, heads)
    torch.save(nn.DataParallel(oracle).state_dict(), path)
    return oracle


def _begin(path: Path, num_classes: int = 5, **changes: Any) -> Any:
    """Return a network with the authors' weights, as training opens it."""
    weights = {"kind": "psla", "source": str(path), "digest": None, "mean": MEAN, "std": STD}
    section = changed(PUBLISHED, {"pretrained": weights} | {key.replace("__", "."): v for key, v in changes.items()})
    params = params_of(section)
    checkpoint = open_pretrained_weights(params, FRONT_END)
    assert checkpoint is not None
    normalisation = fit_normalisation(params, lambda: (0.0, 1.0), checkpoint)
    metadata = {"n_mels": 128, "normalisation": normalisation, "pretrained": checkpoint.metadata}
    model = Network(params, metadata, num_classes).eval()  # type: ignore[arg-type]
    model.load_weights(params, checkpoint)
    return model


def _probabilities(oracle: nn.Module, frames: torch.Tensor, length: int) -> torch.Tensor:
    """Return the authors' probabilities of normalised frames, padded with 0 in the units of log-mel, or cut, to a length."""
    fill = -MEAN / STD
    padded: torch.Tensor = oracle(nn.functional.pad(frames, (0, 0, 0, length - frames.shape[1]), value=fill))
    return padded


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("num_frames", [298, 400])
def test_the_authors_weights_give_the_authors_probabilities(tmp_path: Path, heads: int, num_frames: int) -> None:
    """Padding to a fixed length and weights of heads that do not sum to 1 included."""
    oracle = _write_authors(tmp_path / "psla.pth", heads=heads).double()
    model = _begin(tmp_path / "psla.pth", head__heads=heads).double()
    frames = torch.randn(2, num_frames, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = _probabilities(oracle, frames, 352)
        torch.testing.assert_close(model(frames, None).sigmoid(), expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize(
    ("network", "epsilon"), [("tf_efficientnet_b0", 1e-3), ("efficientnet_b0", 1e-5), ("efficientnet_b0", None)]
)
def test_networks_that_differ_from_the_authors_are_refused(tmp_path: Path, network: str, epsilon: float | None) -> None:
    _write_authors(tmp_path / "psla.pth")
    with pytest.raises(ParamsError, match=r"encoder\.network efficientnet_b0 to b7 with encoder\.norm_epsilon 0\.001"):
        _begin(tmp_path / "psla.pth", encoder__network=network, encoder__norm_epsilon=epsilon)


def test_a_probability_above_one_is_cut_off(tmp_path: Path) -> None:
    tensors = make_psla().state_dict()
    tensors["attention.head_weight"] = torch.full((4,), 0.5)
    for head in range(4):
        tensors[f"attention.cla.{head}.bias"] += 20.0
    torch.save(tensors, tmp_path / "psla.pth")
    logits = _begin(tmp_path / "psla.pth")(torch.zeros(1, 352, 128), None)
    torch.testing.assert_close(logits.sigmoid(), torch.ones(1, 5))


def test_a_head_for_other_classes_is_new_and_an_average(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _write_authors(tmp_path / "psla.pth")
    model = _begin(tmp_path / "psla.pth", num_classes=3)
    assert "its head is for 5 classes, this corpus has 3" in caplog.text
    assert model.head.head_weights.exp().sum().item() == pytest.approx(1)


def test_norms_have_the_settings_that_are_given() -> None:
    model = build(changed(SECTION, {"encoder.norm_epsilon": 1e-3, "encoder.norm_momentum": 0.01}), {"n_mels": 32}, 5)
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert {(layer.eps, layer.momentum) for layer in norms} == {(1e-3, 0.01)}
    untouched = [layer for layer in _build().modules() if isinstance(layer, nn.BatchNorm2d)]
    assert {(layer.eps, layer.momentum) for layer in untouched} == {(1e-5, 0.1)}


def _negative_head(tensors: dict[str, torch.Tensor]) -> None:
    tensors["attention.head_weight"][0] = -0.1


def _lost_block(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if name.startswith("effnet._blocks.15.")]:
        del tensors[name]


@pytest.mark.parametrize(
    ("damage", "changes", "message"),
    [
        (_negative_head, {}, r"attention\.head_weight: expected weights above 0, found \[-0\.1"),
        (_lost_block, {}, r"expected an EfficientNet b0 to b7 .* found 15 blocks and 1280"),
        (
            lambda tensors: tensors.pop("effnet._bn0.bias"),
            {},
            r"tensors of the encoder, found 1 that differ \(bn1\.bias",
        ),
        (lambda tensors: tensors.clear(), {}, r"expected the tensor effnet\._conv_stem\.weight .* found no tensors"),
        (lambda tensors: None, {"head__heads": 2}, r"expected 2 attention heads, .* found 4; set head\.heads to 4"),
        (lambda tensors: None, {"encoder__network": "efficientnet_b2"}, r"set encoder\.network to efficientnet_b0"),
    ],
)
def test_weights_of_the_authors_that_do_not_fit_are_named(
    tmp_path: Path, damage: Any, changes: dict[str, Any], message: str
) -> None:
    tensors = dict(make_psla().state_dict())
    damage(tensors)
    torch.save(tensors, tmp_path / "psla.pth")
    with pytest.raises(SonolexError, match=message):
        _begin(tmp_path / "psla.pth", **changes)


def test_the_mean_of_a_mobilenet_is_taken_before_the_sigmoid() -> None:
    """P-10: features pooled over the clip, one linear layer, a sigmoid; timm's own classifier is the oracle."""
    section = changed(SECTION, {"encoder.network": "mobilenetv2_100", "head": {"kind": "pooled", "pooling": "mean"}})
    model = build(section, {"n_mels": 128}, 5).eval()
    theirs = timm.create_model("mobilenetv2_100", in_chans=1, num_classes=5).eval()
    theirs.load_state_dict({**model.encoder.network.state_dict(), **_as_classifier(model.head.classify)})
    frames = torch.randn(2, 128, 128)
    with torch.no_grad():
        torch.testing.assert_close(model(frames, None), theirs(frames.transpose(1, 2)[:, None]), atol=1e-5, rtol=1e-4)


def _as_classifier(layer: nn.Linear) -> dict[str, torch.Tensor]:
    return {f"classifier.{name}": values for name, values in layer.state_dict().items()}
