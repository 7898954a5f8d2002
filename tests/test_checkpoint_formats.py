"""Weights in three published formats, written by the libraries that own them: the same logits, and refusals by name."""

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from networks import changed, params_of
from test_ast import SMALL
from torch import Tensor, nn

from pipeline.artifacts.files import file_digest
from pipeline.errors import SonolexError
from pipeline.models.network import Network, fit_normalisation, open_pretrained_weights
from pipeline.models.registry import CHECKPOINT_FORMATS
from pipeline.training.batches import normalise

MEAN, STD = -4.2677393, 4.5689974  # of AudioSet, in the files of all published models but one
FRAMES, N_MELS, NUM_CLASSES = 64, 128, 7
AST_FRONT_END = {"front_end": "kaldi", "sample_rate": 16000, "win_length": 400, "hop_length": 160, "n_mels": 128}


class Oracle(nn.Module):
    """The authors' model after section 1 of the paper: timm's DeiT on one channel, and a head on the mean of its tokens."""

    def __init__(self, deit: nn.Module, positions: int, num_classes: int, stride: int = 10) -> None:
        super().__init__()
        self.v, width = deit, deit.pos_embed.shape[2]
        self.v.patch_embed.proj = nn.Conv2d(1, width, 16, stride)
        self.v.pos_embed = nn.Parameter(torch.randn(1, 2 + positions, width) * 0.1)
        self.mlp_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, num_classes))

    def forward(self, frames: Tensor) -> Tensor:
        x = self.v.patch_embed.proj(frames[:, None].transpose(2, 3)).flatten(2).transpose(1, 2)
        tokens = [token.expand(len(x), -1, -1) for token in (self.v.cls_token, self.v.dist_token)]
        x = self.v.norm(self.v.blocks(torch.cat([*tokens, x], dim=1) + self.v.pos_embed))
        return self.mlp_head((x[:, 0] + x[:, 1]) / 2)


def make_deit(**sizes: Any) -> Any:
    torch.manual_seed(1)
    sizes = {"embed_dim": 32, "num_heads": 4, "depth": 2} | sizes
    deit = timm.create_model("deit_tiny_distilled_patch16_224", **sizes).eval()
    return shake(deit)


def shake(model: Any) -> Any:
    """Move every parameter off its start: norms of ones and biases of zeros would hide what is mixed up."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def make_original(path: Path, frames: int = FRAMES, num_classes: int = NUM_CLASSES, **sizes: Any) -> Oracle:
    oracle = Oracle(make_deit(**sizes), 12 * ((frames - 16) // 10 + 1), num_classes).eval()
    torch.save(nn.DataParallel(oracle).state_dict(), path)
    return oracle


def make_huggingface(path: Path, **changes: Any) -> Any:
    torch.manual_seed(2)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    config = transformers.ASTConfig(**sizes, max_length=FRAMES, num_mel_bins=N_MELS, num_labels=NUM_CLASSES, **changes)
    model = shake(transformers.ASTForAudioClassification(config)).eval()
    model.save_pretrained(path)
    transformers.ASTFeatureExtractor(max_length=FRAMES, mean=-5.5, std=3.25).save_pretrained(path)
    return model


def original_weights(path: Path, **changes: Any) -> dict[str, Any]:
    section = {
        "kind": "original",
        "classes": None,
        "source": str(path),
        "digest": None,
        "frames": FRAMES,
        "mean": MEAN,
        "std": STD,
    }
    return section | changes


def hub_weights(path: Path | str, **changes: Any) -> dict[str, Any]:
    return {"kind": "huggingface", "source": str(path), "digest": None, "classes": None} | changes


def photo_weights(path: Path | str, **changes: Any) -> dict[str, Any]:
    return {"kind": "imagenet", "source": str(path), "digest": None} | changes


def begin(
    pretrained: dict[str, Any],
    changes: dict[str, Any] | None = None,
    num_classes: int = NUM_CLASSES,
    frames: int = FRAMES,
) -> tuple[Any, Any]:
    """Return a network with pretrained weights, and their checkpoint; as `pipeline.training.neural` does it."""
    params = params_of(changed(SMALL, {"pretrained": pretrained, "stem.positions.frames": frames} | (changes or {})))
    checkpoint = open_pretrained_weights(params, AST_FRONT_END)
    assert checkpoint is not None
    torch.manual_seed(3)
    model = Network(params, {"n_mels": N_MELS, "pretrained": checkpoint.metadata}, num_classes).eval()
    model.load_weights(params, checkpoint)
    return model, checkpoint


def noise(frames: int = FRAMES) -> Tensor:
    return torch.randn(2, frames, N_MELS, generator=torch.Generator().manual_seed(4))


@torch.no_grad()
def difference(ours: Any, theirs: Any, frames: Tensor) -> float:
    logits = theirs(frames)
    return float((ours(frames, None) - getattr(logits, "logits", logits)).abs().max())


def test_the_original_layout_gives_the_logits_of_the_authors_model(tmp_path: Path) -> None:
    oracle = make_original(tmp_path / "audioset.pth")
    names = torch.load(tmp_path / "audioset.pth", weights_only=True)
    assert len(names) == 159 - 10 * 12
    assert all(name.startswith("module.") for name in names)
    model, checkpoint = begin(original_weights(tmp_path / "audioset.pth"))
    assert difference(model, oracle, noise()) < 1e-4
    assert (checkpoint.statistics, checkpoint.norm_epsilons) == ([(MEAN, STD)], (1e-6, 1e-5))


def test_the_published_file_has_159_tensors_all_of_which_are_known(tmp_path: Path) -> None:
    make_original(tmp_path / "x.pth", depth=12)
    assert len(torch.load(tmp_path / "x.pth", weights_only=True)) == 159
    _, checkpoint = begin(original_weights(tmp_path / "x.pth"), {"encoder.depth": 12})
    assert len(checkpoint.tensors) == 155  # the heads for ImageNet's classes are dropped


@pytest.mark.parametrize("epsilon", [1e-12, 1e-2], ids=["published", "other"])
def test_the_hugging_face_layout_gives_its_logits_whatever_its_epsilon(tmp_path: Path, epsilon: float) -> None:
    theirs = make_huggingface(tmp_path / "hf", layer_norm_eps=epsilon)
    model, checkpoint = begin(hub_weights(tmp_path / "hf"))
    assert difference(model, theirs, noise()) < 1e-4
    assert checkpoint.norm_epsilons == (epsilon, epsilon)
    assert checkpoint.statistics == [(-5.5, 3.25)]


def test_the_hugging_face_layout_may_be_a_bin_file(tmp_path: Path) -> None:
    theirs = make_huggingface(tmp_path / "hf")
    from safetensors.torch import load_file

    torch.save(load_file(tmp_path / "hf/model.safetensors"), tmp_path / "hf/pytorch_model.bin")
    (tmp_path / "hf/model.safetensors").unlink()
    model, _ = begin(hub_weights(tmp_path / "hf/pytorch_model.bin"))
    assert difference(model, theirs, noise()) < 1e-4


@pytest.mark.parametrize("num_frames", [40, 64, 90], ids=["shorter", "as long", "longer"])
def test_a_waveform_gives_the_logits_of_the_hugging_face_pipeline(tmp_path: Path, num_frames: int) -> None:
    """Padding and normalisation included: (x - mean) / (2 std), by the statistics of the checkpoint."""
    theirs = make_huggingface(tmp_path / "hf")
    changes = {"input.normalisation": "pretrained", "stem.positions.shorter": "pad"}
    params = params_of(changed(SMALL, {"pretrained": hub_weights(tmp_path / "hf")} | changes))
    checkpoint = open_pretrained_weights(params, AST_FRONT_END)
    assert checkpoint is not None
    metadata = fit_normalisation(params, lambda: (0.0, 1.0), checkpoint)
    assert metadata == {"kind": "pretrained", "std_scale": 2.0, "mean": -5.5, "std": 3.25}
    model = Network(
        params, {"n_mels": N_MELS, "normalisation": metadata, "pretrained": checkpoint.metadata}, NUM_CLASSES
    ).eval()
    model.load_weights(params, checkpoint)

    waveform = np.random.default_rng(0).standard_normal(400 + 160 * (num_frames - 1)).astype(np.float32) * 0.1
    extractor = transformers.ASTFeatureExtractor.from_pretrained(tmp_path / "hf")
    frames = extractor._extract_fbank_features(waveform, max_length=num_frames)  # of the clip as long as it is
    ours = normalise(torch.from_numpy(frames)[None], None, {}, metadata)
    with torch.no_grad():
        expected = theirs(**extractor(waveform, sampling_rate=16000, return_tensors="pt")).logits
        assert (model(ours, None) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("wrapped", [False, True], ids=["timm", "deit's authors"])
@pytest.mark.parametrize("frames", [64, 256])
def test_weights_for_photographs_are_a_start(tmp_path: Path, frames: int, wrapped: bool) -> None:
    """RGB summed, bias copied, tokens kept, the square table of positions cut to 12 rows and resized in time."""
    deit = make_deit()
    weights = deit.state_dict()
    torch.save({"model": weights} if wrapped else weights, tmp_path / "deit.pth")
    model, checkpoint = begin(photo_weights(tmp_path / "deit.pth"), frames=frames)

    columns = (frames - 16) // 10 + 1
    square = weights["pos_embed"][0, 2:].T.reshape(1, 32, 14, 14)
    if columns <= 14:
        square = square[..., 7 - columns // 2 : 7 - columns // 2 + columns]
    else:
        square = nn.functional.interpolate(square, (14, columns), mode="bilinear")
    table = torch.cat([weights["pos_embed"][0, :2], square[:, :, 1:13].flatten(2)[0].T])
    projection = weights["patch_embed.proj.weight"].sum(1, keepdim=True), weights["patch_embed.proj.bias"]
    oracle = Oracle(deit, 12 * columns, NUM_CLASSES).eval()
    with torch.no_grad():
        oracle.v.pos_embed.copy_(table[None])
        oracle.v.patch_embed.proj.weight.copy_(projection[0])
        oracle.v.patch_embed.proj.bias.copy_(projection[1])
        oracle.mlp_head[0].load_state_dict(model.head.norm.state_dict())
        oracle.mlp_head[1].load_state_dict(model.head.classify.state_dict())
    assert difference(model, oracle, noise(frames)) < 1e-4
    assert not checkpoint.statistics


@pytest.mark.parametrize("kind", ["original", "huggingface", "imagenet"])
def test_writing_a_format_and_reading_it_gives_the_same_weights(kind: str) -> None:
    checkpoint: Any = CHECKPOINT_FORMATS[kind]
    weights = shake(Network(params_of(SMALL), {"n_mels": N_MELS}, NUM_CLASSES)).state_dict()
    read = checkpoint.from_format(checkpoint.to_format(weights), tuple(weights["stem.table"].shape[:2]))
    left_out = (
        {name for name in weights if name.startswith(("head.norm", "head.classify"))} if kind == "imagenet" else set()
    )
    assert read.keys() == weights.keys() - left_out
    for name, tensor in read.items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("frames", [32, 128])
def test_a_pretrained_position_table_is_cut_or_resized(tmp_path: Path, frames: int) -> None:
    oracle = make_original(tmp_path / "x.pth")
    model, _ = begin(original_weights(tmp_path / "x.pth"), frames=frames)
    old = oracle.v.pos_embed[0, 2:].reshape(12, 5, 32)
    columns = (frames - 16) // 10 + 1
    if columns < 5:
        expected = old[:, 2 - columns // 2 : 2 - columns // 2 + columns]
    else:
        expected = nn.functional.interpolate(old.permute(2, 0, 1)[None], (12, columns), mode="bilinear")[0].permute(
            1, 2, 0
        )
    torch.testing.assert_close(model.stem.table, expected)


def test_the_head_is_kept_for_as_many_classes_and_new_for_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Peer bug 1.3.13: the head was random even for the very classes it had been trained on."""
    oracle = make_original(tmp_path / "x.pth")
    kept, _ = begin(original_weights(tmp_path / "x.pth"))
    assert torch.equal(kept.head.classify.weight, oracle.mlp_head[1].weight)
    assert not caplog.records
    other, _ = begin(original_weights(tmp_path / "x.pth"), num_classes=3)
    assert other.head.classify.weight.shape == (3, 32)
    assert torch.equal(other.encoder.norm.weight, oracle.v.norm.weight)
    assert "its head is for 7 classes, this corpus has 3: the head keeps its random weights" in caplog.text


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_malicious_pickle_is_not_run(tmp_path: Path, write: Any) -> None:
    """Peer bug 1.3.15."""
    write({"module.v.cls_token": Malicious(tmp_path / "it ran")}, tmp_path / "x.pth")
    with pytest.raises(SonolexError, match=r"x\.pth: expected weights alone, found a pickle that would run code"):
        begin(original_weights(tmp_path / "x.pth"))
    assert not (tmp_path / "it ran").exists()


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_files_that_hold_no_weights_are_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(SonolexError, match=rf"{name}: expected a file of weights, found none; set pretrained\.source"):
        begin(original_weights(tmp_path / name))
    (tmp_path / name).write_bytes(b"<html>404</html>")
    with pytest.raises(
        SonolexError, match=rf"{name}: expected .*, found .*fetch the file again|found a pickle that would"
    ):
        begin(original_weights(tmp_path / name))
    if name == "x.pth":
        torch.save([torch.zeros(1)], tmp_path / name)
        with pytest.raises(SonolexError, match="expected tensors by name, found list"):
            begin(original_weights(tmp_path / name))
        torch.save({0: torch.zeros(1)}, tmp_path / name)
        with pytest.raises(SonolexError, match="expected tensors by name, found a mapping of 0"):
            begin(original_weights(tmp_path / name))


def test_weights_of_another_format_are_named(tmp_path: Path) -> None:
    make_original(tmp_path / "x.pth")
    torch.save(make_deit().state_dict(), tmp_path / "deit.pth")
    make_huggingface(tmp_path / "hf")
    wrong = {
        "imagenet": (
            original_weights(tmp_path / "deit.pth"),
            "expected the tensor v.cls_token of the format `original`",
        ),
        "original": (photo_weights(tmp_path / "x.pth"), "expected the tensor cls_token of the format `imagenet`"),
        "huggingface": (original_weights(tmp_path / "hf/model.safetensors"), "expected the tensor v.cls_token"),
    }
    for found, (section, message) in wrong.items():
        with pytest.raises(SonolexError, match=f"{message}.*; set pretrained.kind to {found}"):
            begin(section)


@pytest.mark.parametrize(
    ("weights", "changes", "message"),
    [
        ({}, {"encoder.width": 64}, r"cls_token: expected shape \(1, 1, 64\), found shape \(1, 1, 32\) .* width 32"),
        ({}, {"encoder.depth": 3}, r"v\.blocks\.2\.norm1\.weight: expected shape \(32,\), found no such tensor \(11 more"),
        ({}, {"encoder.depth": 1}, r"v\.blocks\.1\..*: expected no such tensor, found shape"),
        ({}, {"encoder.mlp_ratio": 2.0}, r"v\.blocks\.0\.mlp\.fc1\.weight: expected shape \(64, 32\), found"),
        ({"frames": 128}, {}, r"v\.pos_embed: expected shape \(1, 146, 32\), found shape \(1, 62, 32\); set stem.stride"),
        ({}, {"stem.stride_frames": 16}, r"v\.pos_embed: .*not resized to other strides\)"),
        ({}, {"stem.stride_bands": 16}, r"v\.pos_embed: expected shape \(1, 42, 32\), found shape \(1, 62"),
        ({}, {"stem.bands": 8}, r"v\.p.*_embed.*: expected shape"),
        ({"digest": "0" * 32}, {}, r"pretrained\.digest: .*x\.pth: expected 0{32}, found [0-9a-f]{32}; put the file back"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_named(
    tmp_path: Path, weights: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    """Peer bugs 1.3.12 and 1.3.15: other strides failed in the middle of a step, wrong files loaded in part."""
    make_original(tmp_path / "x.pth")
    with pytest.raises(SonolexError, match=message):
        begin(original_weights(tmp_path / "x.pth", **weights), changes)


@pytest.mark.parametrize("damage", ["missing", "extra"])
def test_missing_and_extra_tensors_are_named(tmp_path: Path, damage: str) -> None:
    make_original(tmp_path / "x.pth")
    weights = torch.load(tmp_path / "x.pth", weights_only=True)
    if damage == "missing":
        del weights["module.v.blocks.1.attn.proj.bias"]
        message = r"v\.blocks\.1\.attn\.proj\.bias: expected shape \(32,\), found no such tensor"
    else:
        weights["module.v.blocks.1.attn.gamma"] = torch.ones(32)
        message = r"v\.blocks\.1\.attn\.gamma: expected no such tensor, found shape \(32,\)"
    torch.save(weights, tmp_path / "x.pth")
    with pytest.raises(SonolexError, match=message):
        begin(original_weights(tmp_path / "x.pth"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"encoder.heads": 2},
            r"config.json: num_attention_heads: expected 2, as encoder.heads of the model says, found 4; set enc",
        ),
        (
            {"stem.stride_frames": 16},
            r"time_stride: expected 16, as stem.stride_frames .*found 10; set stem",
        ),
    ],
)
def test_what_config_json_states_must_agree(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    make_huggingface(tmp_path / "hf")
    with pytest.raises(SonolexError, match=message):
        begin(hub_weights(tmp_path / "hf"), changes)


def test_folders_that_are_not_whole_are_named(tmp_path: Path) -> None:
    make_huggingface(tmp_path / "hf")
    (tmp_path / "hf/preprocessor_config.json").unlink()
    with pytest.raises(
        SonolexError, match=r"expected a folder with preprocessor_config\.json.*found config\.json, model\."
    ):
        begin(hub_weights(tmp_path / "hf"))
    config = json.loads((tmp_path / "hf/config.json").read_text())
    (tmp_path / "hf/config.json").write_text(json.dumps(config | {"model_type": "vit"}))
    with pytest.raises(SonolexError, match=r"preprocessor_config"):
        begin(hub_weights(tmp_path / "hf"))
    transformers.ASTFeatureExtractor().save_pretrained(tmp_path / "hf")
    with pytest.raises(
        SonolexError, match=r"config\.json: model_type: expected 'audio-spectrogram-transformer', found 'vit'"
    ):
        begin(hub_weights(tmp_path / "hf"))


def test_a_hub_without_a_network_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked = []

    def fail(repository: str, name: str) -> str:
        asked.append((repository, name))
        raise LocalEntryNotFoundError("no connection,\nno copy")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(
        SonolexError, match=r"'MIT/ast-x' to be a file or folder here, or model\.safetensors or pytorch_"
    ):
        begin(hub_weights("MIT/ast-x"))
    with pytest.raises(SonolexError, match=r"of timm/deit_tiny_distilled_patch16_224\.fb_in1k on the Hugging Face hub"):
        begin(photo_weights("deit_tiny_distilled_patch16_224"))
    assert [repository for repository, _ in asked] == ["MIT/ast-x", "timm/deit_tiny_distilled_patch16_224.fb_in1k"]
    with pytest.raises(
        SonolexError, match=r"expected a file, or one of timm's deit_base_distilled_patch16_224, .*found 'd'"
    ):
        begin(photo_weights("d"))


def test_a_hub_with_a_network_gives_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    theirs = make_huggingface(tmp_path / "hf")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repository, name: str(tmp_path / "hf" / name))
    model, checkpoint = begin(hub_weights("MIT/ast-x"))
    assert difference(model, theirs, noise()) < 1e-4
    assert checkpoint.digest == file_digest(tmp_path / "hf/model.safetensors")


def test_frames_of_another_front_end_and_other_heads_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    make_original(tmp_path / "x.pth", embed_dim=128, num_heads=2)
    weights = original_weights(tmp_path / "x.pth")
    params = params_of(changed(SMALL, {"pretrained": weights, "encoder.width": 128, "encoder.heads": 4}))
    checkpoint = open_pretrained_weights(params, AST_FRONT_END | {"hop_length": 200})
    assert "trained on frames of AST: hop_length: expected 160, found 200" in caplog.text
    assert checkpoint is not None
    Network(params, {"n_mels": N_MELS}, NUM_CLASSES).load_weights(params, checkpoint)
    assert "published weights of width 128 have 2 heads, the encoder has 4: set encoder.heads to 2" in caplog.text
