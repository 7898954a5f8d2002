"""Networks of timm as encoders: padding, sizes, and equality with timm's own output, family by family."""

from typing import Any

import pytest
import timm
import torch
from networks import build, changed, network
from torch import Tensor

from pipeline.errors import ParamsError
from pipeline.models.encoders.timm_layers import BatchNorms, Padding, build_network
from pipeline.models.encoders.timm_network import NETWORKS
from pipeline.models.registry import validate_model_params

# The smallest of each family.
FAMILIES = (
    "efficientnet_b0",
    "tf_efficientnet_b0",
    "mobilenetv2_050",
    "mobilenetv3_small_050",
    "tf_efficientnetv2_b0",
    "efficientnetv2_rw_t",
    "resnet18",
    "resnet26",
    "resnext50_32x4d",
    "convnext_atto",
    "convnext_tiny",
    "convnextv2_atto",
)
# The fifth system's eleven, and the parameters that they have without a classifier, for one channel.
SIZES = {
    "tf_efficientnetv2_s": 20_177_056,
    "tf_efficientnetv2_m": 52_857_924,
    "tf_efficientnetv2_l": 117_233_696,
    "resnext50_32x4d": 22_973_632,
    "resnext101_32x8d": 86_736_064,
    "resnext101_64x4d": 81_400_000,
    "convnext_tiny": 27_817_056,
    "convnext_small": 49_451_616,
    "convnext_base": 87_562_368,
    "convnext_large": 196_224_192,
    "mobilenetv3_large_100": 4_201_744,
}
SMALL = ("mobilenetv3_large_100", "tf_efficientnetv2_s", "resnext50_32x4d", "convnext_tiny")
BANDS = 64


def section_of(name: str, head: str = "attention") -> Any:
    return changed(network("frames", "identity", "timm", head), {"encoder.network": name})


def build_of(name: str) -> Any:
    return build(section_of(name), {"n_mels": BANDS, "log_floor": -16.0})


def noise(*lengths: int) -> tuple[Tensor, Tensor]:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.randn(len(lengths), max(lengths), BANDS, generator=torch.Generator().manual_seed(0)), mask


def shake(model: Any) -> Any:
    """Move biases, norms and scales off their start: biases of 0 would hide what padding becomes, scales of 1e-6 all."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1 + (0.2 if name.endswith("gamma") else 0))
    return model


@pytest.mark.parametrize("name", FAMILIES)
def test_padding_has_no_effect(name: str) -> None:
    model = shake(build_of(name)).eval().double()  # untrained networks of 50 layers blow rounding up
    lengths = [150, 97, 64, 5]
    frames, mask = noise(*lengths)
    frames = frames.double()
    with torch.no_grad():
        together = model(frames, mask)
        alone = torch.cat([model(frames[i : i + 1, :n], None) for i, n in enumerate(lengths)])
        other = model(frames.masked_fill(~mask[:, :, None], 1e3), mask)
    scale = together.abs().max()
    assert (together - alone).abs().max() < 1e-8 * scale
    assert (together - other).abs().max() < 1e-8 * scale
    assert (together[0] - together[1]).abs().max() > 1e-4 * scale


@pytest.mark.parametrize("name", ["resnext50_32x4d", "convnext_atto", "convnext_tiny", "convnextv2_atto"])
def test_an_image_of_whole_patches_gives_timms_own_maps(name: str) -> None:
    torch.manual_seed(0)
    own = shake(timm.create_model(name, in_chans=1, num_classes=0, global_pool="")).eval()
    ours, channels = build_network(name, 0.0, BatchNorms(None, None), Padding())
    ours.load_state_dict(own.state_dict())
    image = torch.randn(2, 1, BANDS, 96)
    with torch.no_grad():
        expected, found = own(image), ours.eval()(image)
    assert expected.shape == (2, channels, 2, 3)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto"])
def test_time_steps_of_whole_patches_lie_in_their_middle(name: str) -> None:
    model = build_of(name).eval()
    assert (model.encoder.stride, model.encoder.centre) == (32, 15.5)
    frames, mask = noise(96, 65)
    with torch.no_grad():
        x, real = model.encoder(*model.stem(frames, mask))
    assert x.shape[1] == 3
    assert real.sum(1).tolist() == [3, 3]


def check_sizes(name: str) -> None:
    model = build_of(name).eval()
    assert sum(parameter.numel() for parameter in model.encoder.parameters()) == SIZES[name]
    with torch.no_grad():
        assert model(*noise(64, 40)).shape == (2, 7)


@pytest.mark.parametrize("name", SMALL)
def test_sizes_of_small_networks(name: str) -> None:
    check_sizes(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SIZES if name not in SMALL])
def test_sizes_of_large_networks(name: str) -> None:
    check_sizes(name)


def test_every_permitted_network_is_timms() -> None:
    assert not [name for name in NETWORKS if not timm.is_model(name)]
    assert set(SIZES) | set(FAMILIES) <= set(NETWORKS)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_base_patch16_224", r"found vit_base_patch16_224, which has self-attention .*encoder.kind transformer"),
        ("swin_tiny_patch4_window7_224", r"which has self-attention over images of one size"),
        ("densenet121", r"expected one of the networks whose layers are known to leave padding out: .*convnext_tiny"),
    ],
)
def test_other_networks_are_refused_by_name(name: str, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        validate_model_params("tested", section_of(name))
