"""The published AST: parameters and patches to the unit, its position table, clips of any length, logits along time."""

import functools
from typing import Any

import pytest
import torch
from conftest import REPOSITORY
from networks import build, changed, params_of
from ruamel.yaml import YAML

from pipeline.errors import ParamsError
from pipeline.models.positions import fit_grid
from tools.compose import compose, dump

LEARNED = {"kind": "learned", "frames": 64, "shorter": "mask"}
STEM = {"kind": "patches", "frames": 16, "bands": 16, "stride_frames": 10, "stride_bands": 10, "positions": LEARNED}
SMALL: dict[str, Any] = {
    "kind": "network",
    "input": {"kind": "frames", "normalisation": "corpus", "std_scale": 2.0},
    "stem": STEM,
    "encoder": {"kind": "transformer", "width": 32, "depth": 2, "heads": 4, "mlp_ratio": 4.0, "drop_path": 0.0},
    "head": {"kind": "class_token", "distillation_token": True},
    "window": None,
    "pretrained": None,
}
CLASS_TOKEN = {"kind": "class_token", "distillation_token": False}
NORMALISATION = {"kind": "corpus", "std_scale": 2.0, "mean": -4.0, "std": 5.0}
N_MELS = 32

# Millions of parameters that the published models use (Gong et al.'s own logs print these and 1.538 M dead ones at base).
PARAMETERS = {
    "tiny224": (5.724, 5.514, 5.424, 5.624),
    "small224": (22.064, 21.645, 21.464, 21.865),
    "base224": (86.594, 85.757, 85.395, 86.196),
    "base384": (86.594, 85.757, 85.395, 86.196),
}
INPUTS = ((1024, 527), (512, 50), (128, 35), (1024, 10))  # frames, classes
PATCHES = {  # frames -> patches at strides 10, 12, 14, 16 of 128 bands
    100: (108, 80, 63, 48),
    128: (144, 100, 81, 64),
    256: (300, 210, 162, 128),
    400: (468, 330, 252, 200),
    498: (588, 410, 315, 248),
    512: (600, 420, 324, 256),
    998: (1188, 820, 639, 496),
    1024: (1212, 850, 657, 512),
    2048: (2448, 1700, 1314, 1024),
    3000: (3588, 2490, 1926, 1496),
}


@functools.cache
def published(size: str) -> dict[str, Any]:
    """Return the section of a size's recipe."""
    document, mistakes = compose(f"demo+ast_{size}", [], REPOSITORY / "recipes")
    assert not mistakes
    section: dict[str, Any] = YAML(typ="safe").load(dump(document))["models"]["ast"]
    return section


def with_stem(section: dict[str, Any], *, frames: int, stride: int = 10) -> dict[str, Any]:
    """Return the section for clips of so many frames, and other strides."""
    strides = {"stem.stride_frames": stride, "stem.stride_bands": stride}
    return changed(section, strides | {"stem.positions.frames": frames})


def make(section: dict[str, Any], n_mels: int = N_MELS, num_classes: int = 7, **metadata: Any) -> Any:
    return build(section, {"n_mels": n_mels, "normalisation": NORMALISATION, **metadata}, num_classes)


def small(**positions: Any) -> dict[str, Any]:
    return SMALL | {"stem": STEM | {"positions": LEARNED | positions}}


@pytest.mark.parametrize("lengths", [(64, 64), (64, 40)])
@pytest.mark.parametrize("head", [CLASS_TOKEN, SMALL["head"]], ids=["class", "class_distillation"])
def test_the_last_block_computes_what_is_read_and_nothing_changes(
    head: dict[str, Any], lengths: tuple[int, int]
) -> None:
    """Logits and the gradient of every weight, against an encoder whose last block computes all positions."""
    mask = torch.arange(64) < torch.tensor(lengths)[:, None] if lengths[1] < 64 else None
    found = []
    for count in (None, 2 if head["distillation_token"] else 1):
        model = make(SMALL | {"head": head})
        features = torch.randn(2, 64, N_MELS, generator=torch.Generator().manual_seed(1))
        x, positions = model.head.prepend_class_tokens(*model.stem(features, mask))
        logits = model.head(*model.encoder(x, positions, count))
        assert model.encoder(x, positions, count)[0].shape[1] == (count or x.shape[1])
        (logits**2).sum().backward()
        torch.testing.assert_close(model.classify(features, mask), logits)
        found.append((logits, {name: p.grad for name, p in model.named_parameters()}))
    (logits, gradients), (cut_logits, cut_gradients) = found
    torch.testing.assert_close(cut_logits, logits, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(cut_gradients[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", PARAMETERS)
def test_parameters_are_those_of_the_published_models(size: str) -> None:
    for (frames, num_classes), millions in zip(INPUTS, PARAMETERS[size], strict=True):
        section = with_stem(published(size), frames=frames)
        with torch.device("meta"):
            model = make(section, 128, num_classes)
        count = sum(p.numel() for p in model.parameters())
        assert round(count / 1e6, 3) == millions
        width, patches = section["encoder"]["width"], PATCHES[frames][0]
        blocks = 12 * (12 * width**2 + 13 * width)
        assert count == blocks + 256 * width + width + (patches + 2) * width + 6 * width + num_classes * (width + 1)


def test_base_has_86594063_parameters() -> None:
    with torch.device("meta"):
        model = make(published("base384"), 128, 527)
    assert sum(p.numel() for p in model.parameters()) == 86_594_063
    assert sum(tensor.numel() for tensor in model.state_dict().values()) == 86_594_063


@pytest.mark.parametrize("frames", PATCHES)
def test_patches_are_those_of_the_published_table(frames: int) -> None:
    for stride, patches in zip((10, 12, 14, 16), PATCHES[frames], strict=True):
        with torch.device("meta"):
            model = make(with_stem(published("tiny224"), frames=frames, stride=stride), 128)
            positions, _ = model.stem(torch.empty(1, frames, 128), None)
        assert positions.shape[1] == patches == model.stem.table.shape[:2].numel()


def test_base384_differs_from_base224_in_its_start_alone() -> None:
    sections = [published(size) for size in ("base224", "base384")]
    starts = [section["pretrained"]["source"] for section in sections]
    assert starts == ["deit_base_distilled_patch16_224", "deit_base_distilled_patch16_384"]
    assert sections[0] | {"pretrained": None} == sections[1] | {"pretrained": None}


@pytest.mark.parametrize(
    ("old", "new", "rows", "columns"),
    [
        ((12, 101), (12, 50), (0, 12), (25, 75)),  # AudioSet's table for 512 frames
        ((12, 101), (12, 12), (0, 12), (44, 56)),  # and for 128
        ((12, 101), (12, 101), (0, 12), (0, 101)),
        ((12, 101), (5, 101), (4, 9), (0, 101)),
        ((24, 24), (12, 24), (6, 18), (0, 24)),
        ((24, 24), (12, 12), (6, 18), (6, 18)),
        ((14, 14), (12, 11), (1, 13), (2, 13)),
    ],
)
def test_a_smaller_table_is_the_middle_of_the_old_one(
    old: tuple[int, int], new: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    grid = torch.arange(old[0] * old[1] * 2.0).reshape(*old, 2)
    assert torch.equal(fit_grid(grid, *new), grid[slice(*rows), slice(*columns)])


def test_a_larger_table_is_resized_bilinearly() -> None:
    grid = torch.arange(24.0)[None, :, None].expand(24, -1, 2)  # every value is its column's number
    resized = fit_grid(grid, 12, 101)
    assert resized.shape == (12, 101, 2)
    # Columns' middles are mapped onto each other, and what lies beyond the outermost takes their value.
    expected = ((torch.arange(101) + 0.5) * 24 / 101 - 0.5).clamp(0, 23)
    torch.testing.assert_close(resized[3, :, 1], expected)
    taller = fit_grid(grid.transpose(0, 1), 30, 24)
    torch.testing.assert_close(taller[:, 5, 0], ((torch.arange(30) + 0.5) * 24 / 30 - 0.5).clamp(0, 23))


@pytest.mark.parametrize("shorter", ["mask", "pad"])
def test_clips_of_any_length_share_a_batch(shorter: str) -> None:
    """The most asked question of the peer: 1 s clips among 10 s ones. The longest here is longer than the table."""
    model = make(small(shorter=shorter)).eval()
    lengths = [80, 64, 37, 9]
    mask = torch.arange(80) < torch.tensor(lengths)[:, None]
    frames = torch.randn(4, 80, N_MELS).masked_fill(~mask[:, :, None], 0)
    with torch.no_grad():
        alone = [model(frames[i : i + 1, :n], None) for i, n in enumerate(lengths)]
        together = model(frames, mask)
        steps, real = model.classify_time_steps(frames, mask)
        single = [model.classify_time_steps(frames[i : i + 1, :n], None) for i, n in enumerate(lengths)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)
    assert real.sum(1).tolist() == [5, 5, 3, 1]
    for i, (logits, own) in enumerate(single):
        torch.testing.assert_close(steps[i][real[i]], logits[0][own[0]], atol=1e-5, rtol=1e-5)


def test_a_clip_that_is_padded_is_read_as_its_published_form() -> None:
    """AST pads with zeros before it normalises: behind a clip stands -mean / (2 std), louder than the average."""
    model = make(small(shorter="pad")).eval()
    frames = torch.randn(1, 30, N_MELS)
    by_hand = torch.cat([frames, torch.full((1, 34, N_MELS), 4.0 / (2 * 5.0))], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(model(frames, None), model(by_hand, None))
        assert not torch.allclose(model(frames, None), make(small()).eval()(frames, None), atol=1e-4)


def test_positions_matter() -> None:
    model = make(small()).eval()
    frames = torch.randn(1, 64, N_MELS)
    with torch.no_grad():
        before = model(frames, None)
        model.stem.table.copy_(model.stem.table.flip(1))
        assert not torch.allclose(model(frames, None), before, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"head": {"kind": "pooled", "pooling": "mean"}},
            r"pretrained: weights of an AST need .* found input frames, stem patches, encoder transformer, head pooled; "
            r".*set pretrained to",
        ),
        (
            {"stem.positions": {"kind": "sinusoidal"}},
            r"pretrained: weights of an AST need .* with positions\.kind learned",
        ),
        ({"head": CLASS_TOKEN}, r"pretrained: weights of an AST need .* class_token with distillation_token true"),
        (
            {"input.normalisation": "pretrained"},
            r"input\.normalisation: `pretrained` needs pretrained weights of log-mel frames; use",
        ),
        (
            {"pretrained": {"kind": "imagnet"}},
            r"models\.tested\.pretrained\.kind: expected one of original, huggingface, imagenet, .*found 'imagnet'",
        ),
        ({"pretrained": {"kind": "imagenet", "source": "x"}}, r"models\.tested\.pretrained\.digest: field required"),
        (
            {"pretrained": None, "input.normalisation": "clip", "stem.positions.shorter": "pad"},
            r"input\.normalisation: expected one for all clips with stem\.kind patches, which pads shorter clips .*, found",
        ),
        ({"stem.positions.frames": 15}, r"models\.tested\.stem: positions\.frames 15 must be at least frames 16"),
    ],
)
def test_wrong_params_are_named(changes: dict[str, Any], message: str) -> None:
    pretrained = {"kind": "imagenet", "source": "deit_tiny_distilled_patch16_224", "digest": None}
    with pytest.raises(ParamsError, match=message):
        params_of(changed(SMALL, {"pretrained": pretrained} | changes))


def test_the_statistics_of_pretrained_weights_are_divided_by_twice_the_deviation() -> None:
    pretrained: dict[str, Any] = {"kind": "original", "source": "x.pth", "digest": None, "classes": None}
    pretrained |= {"frames": 64, "mean": -4.0, "std": 5.0}
    with pytest.raises(ParamsError, match=r"input\.std_scale: expected 2 with normalisation `pretrained`, .* found 1"):
        params_of(
            changed(SMALL, {"pretrained": pretrained, "input.normalisation": "pretrained", "input.std_scale": 1.0})
        )
