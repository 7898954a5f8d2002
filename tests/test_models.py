"""The contract of networks, over every combination of parts: shapes, padding, gradients, patchout, time steps, learning."""

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from networks import ENCODERS, NUM_CLASSES, STEMS, build, combinations, make_inputs, network, params_of

from pipeline.errors import ParamsError
from pipeline.models import registry
from pipeline.models.blocks import drop_path
from pipeline.models.network import NetworkParams
from pipeline.models.parts import Encoder, Head, Input, Stem

COMBINATIONS = combinations()
# A combination for each stem, encoder and head, for what takes longer.
CHOSEN = [("linear", "transformer", "class_distillation"), ("fixed_length", "identity", "flatten")]
CHOSEN += [("patches", "conformer", "mean"), ("convolution", "lstm", "mean"), ("convolution_1d", "lstm", "mean_max")]
CHOSEN += [("textures", "transformer", "deep"), ("textures", "identity", "mean")]
CHOSEN += [("identity", "cnn", "mean_max"), ("identity", "timm", "attention"), ("identity", "identity", "mean")]
READS = ["frames", "tokens"]
# Heads see an encoder's positions, whatever the input: tokens meet each stem with each encoder once.
CASES = [(*case, "frames") for case in COMBINATIONS]
CASES += [
    (*{case[:2]: case for case in COMBINATIONS}[pair], "tokens") for pair in dict.fromkeys(c[:2] for c in COMBINATIONS)
]


def _names(case: tuple[str, ...]) -> str:
    return "-".join(case)


def test_every_part_is_in_a_combination_and_the_chosen_ones_fit() -> None:
    kinds = {"stem": set[str](), "encoder": set[str](), "head": set[str]()}
    for stem, encoder, head in COMBINATIONS:
        section = network("frames", stem, encoder, head)
        for part, found in kinds.items():
            found.add(section[part]["kind"])
    encoders = set(registry.ENCODERS) - {"waveform_encoder"}  # of another input: test_waveform_training.py
    assert kinds == {"stem": set(registry.STEMS), "encoder": encoders, "head": set(registry.HEADS)}
    assert set(CHOSEN) <= set(COMBINATIONS)
    assert {case[0] for case in CHOSEN} == set(STEMS)
    assert {case[1] for case in CHOSEN} == set(ENCODERS)


@pytest.mark.parametrize("family", [registry.INPUTS, registry.STEMS, registry.ENCODERS, registry.HEADS])
def test_parts_are_of_their_base_class_and_say_what_they_take(family: Any) -> None:
    base = {"input": Input, "stem": Stem, "encoder": Encoder, "head": Head}[family.what]
    for kind, part in family.items():
        assert issubclass(part, base)
        assert part.Params.model_fields["kind"].annotation.__args__ == (kind,)


@pytest.mark.parametrize("family", [registry.INPUTS, registry.STEMS, registry.ENCODERS, registry.HEADS])
def test_the_docs_name_every_part_and_its_settings(family: Any) -> None:
    page = (REPOSITORY / "docs/models.md").read_text()
    tables = [line for line in page.splitlines() if line.startswith("| `")]
    for kind, part in family.items():
        rows = [row for row in tables if row.startswith(f"| `{kind}` |")]
        assert rows, kind
        assert not [name for name in part.Params.model_fields if name != "kind" and f"`{name}`" not in page], kind


def test_the_part_in_the_docs_is_one_file_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (REPOSITORY / "docs/extending.md").read_text().split("## A part of a network")[1]
    source, line = (block.split("```")[0] for block in page.split("```python\n")[1:3])
    kind, target = re.findall(r'"([^"]+)"', line)
    module = target.partition(":")[0]
    (tmp_path / "moving_average.py").write_text(source)
    spec = importlib.util.spec_from_file_location(module, tmp_path / "moving_average.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, module, loaded)
    spec.loader.exec_module(loaded)
    monkeypatch.setitem(registry.ENCODERS.targets, kind, target)
    try:
        NetworkParams.model_rebuild(force=True)
        section = network("frames", "identity", "identity", "mean_max") | {"encoder": {"kind": kind, "neighbours": 2}}
        model = build(section).eval()
        frames, mask = make_inputs("frames", [90, 41])
        with torch.no_grad():
            torch.testing.assert_close(model(frames, mask)[1:], model(frames[1:, :41], None), atol=1e-5, rtol=1e-5)
    finally:
        monkeypatch.undo()
        NetworkParams.model_rebuild(force=True)


def test_models_are_not_probed() -> None:
    """What a model or a part can do is an attribute of its base class; nobody asks whether it has one."""
    patterns = (
        "experiment.py",
        "models/**/*.py",
        "training/*.py",
        "evaluation/*prediction.py",
        "evaluation/attention.py",
    )
    files = [file for pattern in patterns for file in (REPOSITORY / "pipeline").glob(pattern)]
    assert len(files) > 60
    assert not [file.name for file in files if re.search(r"\b(has|get)attr\(", file.read_text())]


@pytest.mark.parametrize("case", CASES, ids=_names)
def test_a_padded_clip_has_the_logits_of_the_unpadded_one(case: tuple[str, str, str, str]) -> None:
    *parts, reads = case
    model = build(network(reads, *parts)).eval()
    lengths = [90, 41, 3]
    inputs, mask = make_inputs(reads, lengths)
    axis = 2 if reads == "tokens" else 1
    with torch.no_grad():
        together = model(inputs, mask)
        alone = [model(inputs[i : i + 1].narrow(axis, 0, n), None) for i, n in enumerate(lengths)]
        other = inputs.clone()  # whatever stands behind a clip's end, nobody reads it
        if reads == "frames":
            other[~mask] = 1e3
        assert together.shape == (3, NUM_CLASSES)
        torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model(other, mask), together, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=_names)
def test_every_parameter_learns_and_settings_of_training_do_what_they_say(case: tuple[str, str, str, str]) -> None:
    """Gradients reach all parameters; checkpointing leaves them as they are; patchout hides positions, and no clip."""
    *parts, reads = case
    model = build(network(reads, *parts)).train()
    inputs, mask = make_inputs(reads, [90, 41, 30])
    logits = model(inputs, mask)
    assert torch.isfinite(logits).all()
    logits.square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert not [name for name, gradient in gradients.items() if gradient is None or not gradient.abs().sum()]

    if model.supports_activation_checkpointing:
        model.zero_grad()
        model.set_activation_checkpointing(True)
        model(inputs, mask).square().sum().backward()
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.grad, gradients[name], atol=1e-5, rtol=1e-5)
        model.set_activation_checkpointing(False)
    if model.supports_patchout:
        seen: list[int] = []
        model.encoder.register_forward_pre_hook(lambda _module, arguments: seen.append(arguments[0].shape[1]))
        model.patchout = 0.5
        shown = model(inputs, mask)
        model.eval()(inputs, mask)
        tokens = model.head.num_class_tokens
        assert seen[0] - tokens == (seen[1] - tokens + 1) // 2
        assert torch.isfinite(shown).all()
        assert not torch.allclose(shown, logits)
    assert model.supports_patchout == (case[1] not in ("cnn", "timm") and case[2] != "flatten")


@pytest.mark.parametrize("reads", READS)
@pytest.mark.parametrize("case", CHOSEN, ids=_names)
def test_overfits_four_clips(case: tuple[str, str, str], reads: str) -> None:
    model = build(network(reads, *case)).train()
    inputs, mask = make_inputs(reads, [60, 60, 50, 40])
    targets = torch.arange(4)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        logits = model(inputs, mask)
        loss = torch.nn.functional.cross_entropy(logits, targets)
        if loss < 0.1:
            break
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert (logits.argmax(1) == targets).all()


@pytest.mark.parametrize("case", COMBINATIONS, ids=_names)
def test_time_steps_are_the_clips_own_and_as_long_as_said(case: tuple[str, str, str]) -> None:
    model = build(network("frames", *case)).eval()
    lengths = [64, 40, 9]
    frames, mask = make_inputs("frames", lengths)
    if not model.supports_time_steps:
        assert case[2] in ("attention", "flatten")
        return
    with torch.no_grad():
        logits, real = model.classify_time_steps(frames, mask)
        assert logits.shape == (*real.shape, NUM_CLASSES)
        for i, length in enumerate(lengths):
            own, own_real = model.classify_time_steps(frames[i : i + 1, :length], None)
            torch.testing.assert_close(logits[i][real[i]], own[0][own_real[0]], atol=1e-5, rtol=1e-5)
        stride = model.encoder.stride
        if case[0] not in ("patches", "textures"):  # whole ones, of which fewer fit
            assert real.sum(1).tolist() == [-(-length // stride) for length in lengths]
        if case[2] == "mean":
            own, _ = model.classify_time_steps(frames[:1], None)
            torch.testing.assert_close(own.mean(1), model(frames[:1], None), atol=1e-5, rtol=1e-5)


def test_padding_in_a_training_batch_changes_no_step() -> None:
    """Outputs, statistics and gradients of batch norm come from real frames alone, as if nothing had been padded."""
    padded, plain = (build(network("frames", "convolution")).train() for _ in range(2))
    frames = torch.randn(2, 40, 24) + 5
    expected = plain(frames, None)
    logits = padded(torch.nn.functional.pad(frames, (0, 0, 0, 200)), torch.arange(240).expand(2, -1) < 40)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    weights = torch.randn_like(logits)
    (logits * weights).sum().backward()
    (expected * weights).sum().backward()
    for (name, p), q in zip(padded.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-4, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")
    mean, expected_mean = padded.stem.stack.norms[0].running_mean, plain.stem.stack.norms[0].running_mean
    torch.testing.assert_close(mean, expected_mean, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("reads", READS)
@pytest.mark.parametrize("case", [case for case in CHOSEN if case[0] != "fixed_length"], ids=_names)
def test_a_clip_of_ten_seconds_is_read_from_its_first_to_its_last_frame(case: tuple[str, str, str], reads: str) -> None:
    """Peer bugs 3.3.1 and 3.3.3: lengths taken from the wrong axis (64 of 1,723 frames), a context cut at 512 tokens."""
    model = build(network(reads, *case)).eval()
    inputs, mask = make_inputs(reads, [1000, 1100])
    last = {"patches": 997, "convolution": 998}.get(case[0], 999)  # that a whole patch, or a kernel, holds
    time = inputs.movedim(-1, 1) if reads == "tokens" else inputs  # (clip, frame, ...), a view
    with torch.no_grad():
        before = model(inputs, mask)
        for frame in (0, 500, last):
            kept = time[0, frame].clone()
            time[0, frame] = (kept + 1) % 20 if reads == "tokens" else kept + 5
            after = model(inputs, mask)
            assert not torch.allclose(after[0], before[0], atol=1e-7), frame
            torch.testing.assert_close(after[1], before[1])
            time[0, frame] = kept


def test_tokens_start_as_their_centroids_and_padding_stays_zero() -> None:
    model = build(network("tokens"))
    codebook = np.random.default_rng(0).standard_normal((20, 12)).astype(np.float32)
    table = model.input.weights[0]
    np.testing.assert_array_equal(table[:20].detach().numpy(), codebook)
    inputs, mask = make_inputs("tokens", [30, 10])
    model(inputs, mask).sum().backward()
    assert not table[20].any()
    assert not table.grad[20].any()


def test_frozen_and_random_embeddings() -> None:
    frozen = build(network("tokens", input__embedding_rate=0.0))
    assert not any(p.requires_grad for p in frozen.input.parameters())
    summed = build(network("tokens", input__embedding="random", input__embedding_width=10))
    assert summed.input.neighbours.shape == (2, 23, 8)  # noise of tokens does not ask how they are embedded
    inputs, _ = make_inputs("tokens", [8])
    features = summed.embed(inputs)
    assert features.shape == (1, 8, 10)
    tables = summed.input.tables
    torch.testing.assert_close(features, tables[0](inputs[:, 0]) + tables[1](inputs[:, 1]))


def test_drop_path_keeps_the_mean_and_only_acts_in_training() -> None:
    ones = torch.ones(4000, 1, 1)
    dropped = drop_path(ones, 0.5, training=True)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert abs(dropped.mean().item() - 1) < 0.1
    assert drop_path(ones, 0.5, training=False) is ones


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (network(encoder__width=36), r"models\.tested\.encoder: width 36 must be a multiple of 2 \* heads = 8"),
        (network(stem="convolution", stem__kernel=4), r"models\.tested\.stem: kernel 4 must be odd"),
        (network(stem="convolution", stem__channels=[8]), r"channels \[8\] and strides .* the same number of layers"),
        (network(kind=["network"]), r"models\.tested\.kind: expected one of network, .* found \['network'\]"),
        (network(kind="asd"), r"models\.tested\.kind: expected one of network, bag_of_tokens, .*found 'asd'"),
        (network(encoder__kind="asd"), r"models\.tested\.encoder\.kind: expected one of transformer, .*found 'asd'"),
        (network(encoder__drop_path=1.5), r"models\.tested\.encoder\.drop_path: input should be less than 1, found 1"),
        (network(encoder="conformer", encoder__kernel=4), r"encoder\.kernel: expected an odd number"),
        (
            network(stem="identity"),
            r"stem\.kind: expected one of patches, convolution, convolution_1d, linear, textures with",
        ),
        (network(encoder="cnn"), r"stem\.kind: expected one of identity, fixed_length with encoder\.kind cnn, which"),
        (network(encoder="lstm", head="class"), r"head\.kind: class tokens need one of the encoders transformer, conf"),
        (
            network(head="last"),
            r"head: last states need one of the encoders lstm, found pooled with encoder\.kind trans",
        ),
        (network(head="flatten"), r"head\.kind: expected a stem with a fixed number of positions, found flatten"),
        (
            network("frames", "fixed_length", "identity", "flatten", input__normalisation="clip"),
            r"input\.normalisation: expected one for all clips with stem\.kind fixed_length, .* found clip",
        ),
        (
            network(input__normalisation="pretrained"),
            r"input\.normalisation: `pretrained` needs pretrained weights of log-mel frames; use `corpus`",
        ),
        (
            network(pretrained={"kind": "timm", "source": "x", "digest": None}),
            r"pretrained: weights of timm need encoder\.kind timm, found transformer; recipes/psla_audioset\.yaml",
        ),
    ],
)
def test_wrong_params_are_named(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        params_of(section)
