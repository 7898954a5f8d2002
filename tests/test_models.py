"""The contract of every neural model, over every stem and head: shapes, gradients, padding, and that it can learn."""

from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import ParamsError
from pipeline.models.encoder import Block, EncoderParams
from pipeline.models.registry import MODELS, is_neural, model_module, validate_model_params

STEMS: dict[str, dict[str, Any]] = {
    "patches": {
        "kind": "patches",
        "frames": 8,
        "bands": 8,
        "stride_frames": 5,
        "stride_bands": 4,
        "positions": {"kind": "sinusoidal"},
    },
    "convolution": {"kind": "convolution", "channels": [8, 16], "strides": [[4, 4], [2, 2]], "kernel": 5},
    "convolution_1d": {"kind": "convolution_1d", "channels": [20, 16], "strides": [2, 1], "kernel": 5},
    "linear": {"kind": "linear"},
}
ENCODER = {"width": 32, "depth": 2, "heads": 4, "mlp_ratio": 2.0, "drop_path": 0.0}
RECURRENT = {"width": 32, "depth": 1, "dropout": 0.0}
NORMALISATION = {"normalisation": "corpus", "deviations": 1.0}
WORDS = {"embedding": "centroids", "embedding_rate": 0.05, "embedding_width": 12}
STACK = {"channels": [8, 16, 24], "strides": [[2, 2]] * 3, "kernel": 3}
OWN: dict[str, dict[str, Any]] = {
    "ast": ENCODER | NORMALISATION | {"start": None},
    "token_transformer": ENCODER | WORDS,
    "lstm": RECURRENT | WORDS,
    "frames_lstm": RECURRENT | NORMALISATION,
    "cnn": NORMALISATION | STACK,
    "token_cnn": WORDS | STACK,
    "mlp": NORMALISATION | {"frames": 64, "hidden": [16], "dropout": 0.0},
    "psla": NORMALISATION | {"backbone": "mobilenetv3_small_050", "start": None, "drop_path": 0.0, "heads": 2},
    "bag_of_embeddings": WORDS,
}
INPUTS: dict[str, dict[str, Any]] = {
    "frames": {
        "n_mels": 24,
        "log_floor": -16.0,
        "normalisation": {"kind": "corpus", "deviations": 2.0, "mean": -6.0, "deviation": 4.0},
    },
    "tokens": {"vocabulary_size": 20, "bands": [[0, 12], [12, 24]]},
}
_TRANSFORMER_POOLINGS, _RECURRENT_POOLINGS = (
    ("mean", "mean_max", "class", "class_distillation"),
    ("mean", "mean_max", "last"),
)
POOLINGS = {
    "ast": _TRANSFORMER_POOLINGS,
    "token_transformer": _TRANSFORMER_POOLINGS,
    "lstm": _RECURRENT_POOLINGS,
    "frames_lstm": _RECURRENT_POOLINGS,
}
NEURAL = [kind for kind in MODELS if is_neural(kind)]
CASES = [(kind, stem) for kind in NEURAL for stem in (STEMS if kind in POOLINGS else [""])]
NUM_CLASSES = 7


def _reads(kind: str) -> str:
    reads: str = model_module(kind).READS
    return reads


def _build(
    kind: str, stem: str = "", pooling: str = "mean", *, facts: dict[str, Any] | None = None, **changes: Any
) -> Any:
    shared = {"stem": STEMS[stem], "pooling": pooling} if stem else {}
    section = {"kind": kind, **shared, **OWN[kind], **changes}
    params = validate_model_params("tested", section)
    torch.manual_seed(0)
    facts = facts or INPUTS[_reads(kind)]
    model = model_module(kind).build(params, facts, NUM_CLASSES)
    if _reads(kind) == "tokens":
        generator = np.random.default_rng(0)
        codebooks = [generator.standard_normal((20, b - a)).astype(np.float32) for a, b in facts["bands"]]
        model_module(kind).start(model, params, codebooks)
    return model


def _inputs(kind: str, lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    if _reads(kind) == "frames":
        frames = torch.randn(len(lengths), max(lengths), 24, generator=generator)
        return frames.masked_fill(~mask[:, :, None], 0), mask
    tokens = torch.randint(0, 20, (len(lengths), 2, max(lengths)), generator=generator)
    return tokens.masked_fill(~mask[:, None], 20), mask


@pytest.mark.parametrize(
    ("kind", "stem", "pooling"), [(*case, pooling) for case in CASES for pooling in POOLINGS.get(case[0], [""])]
)
def test_padding_changes_nothing(kind: str, stem: str, pooling: str) -> None:
    model = _build(kind, stem, pooling).eval()
    lengths = [90, 41, 3]
    inputs, mask = _inputs(kind, lengths)
    with torch.no_grad():
        together = model(inputs, mask)
        axis = 2 if _reads(kind) == "tokens" else 1
        alone = [model(inputs[i : i + 1].narrow(axis, 0, n), None) for i, n in enumerate(lengths)]
        other = inputs.clone()  # whatever stands behind a clip's end, nobody reads it
        if axis == 1:
            other[~mask] = 1e3
    assert together.shape == (3, NUM_CLASSES)
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(other, mask), together, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "stem"), CASES)
def test_every_parameter_learns(kind: str, stem: str) -> None:
    model = _build(kind, stem).train()
    inputs, mask = _inputs(kind, [90, 41, 30])
    logits = model(inputs, mask)
    assert torch.isfinite(logits).all()
    logits.square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert not without


@pytest.mark.parametrize(("kind", "stem"), CASES)
def test_overfits_four_clips(kind: str, stem: str) -> None:
    model = _build(kind, stem).train()
    inputs, mask = _inputs(kind, [60, 60, 50, 40])
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


def test_padding_in_a_training_batch_changes_no_step() -> None:
    """Outputs, statistics and gradients of batch norm come from real frames alone, as if nothing had been padded."""
    padded, plain = _build("ast", "convolution").train(), _build("ast", "convolution").train()
    frames = torch.randn(2, 40, 24) + 5
    expected = plain(frames, None)
    logits = padded(torch.nn.functional.pad(frames, (0, 0, 0, 200)), torch.arange(240).expand(2, -1) < 40)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    weights = torch.randn_like(logits)
    (logits * weights).sum().backward()
    (expected * weights).sum().backward()
    for (name, p), q in zip(padded.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, atol=1e-4, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")
    mean, expected_mean = padded.stem.norms[0].running_mean, plain.stem.norms[0].running_mean
    torch.testing.assert_close(mean, expected_mean, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in NEURAL if kind != "mlp"])
def test_a_clip_of_ten_seconds_is_read_from_its_first_to_its_last_frame(kind: str) -> None:
    """Peer bugs 3.3.1 and 3.3.3: lengths taken from the wrong axis (64 of 1,723 frames), a context cut at 512 tokens."""
    model = _build(kind, "linear" if kind in POOLINGS else "").eval()
    inputs, mask = _inputs(kind, [1000, 1100])
    time = inputs.movedim(-1, 1) if _reads(kind) == "tokens" else inputs  # (clip, frame, ...), a view
    with torch.no_grad():
        before = model(inputs, mask)
        for frame in (0, 500, 999):
            kept = time[0, frame].clone()
            time[0, frame] = (kept + 1) % 20 if _reads(kind) == "tokens" else kept + 5
            after = model(inputs, mask)
            assert not torch.allclose(after[0], before[0], atol=1e-7), frame
            torch.testing.assert_close(after[1], before[1])
            time[0, frame] = kept


def test_tokens_start_as_their_centroids_and_padding_stays_zero() -> None:
    model = _build("token_transformer", "linear")
    codebook = np.random.default_rng(0).standard_normal((20, 12)).astype(np.float32)
    np.testing.assert_array_equal(model.tables[0].weight[:20].detach().numpy(), codebook)
    inputs, mask = _inputs("token_transformer", [30, 10])
    model(inputs, mask).sum().backward()
    assert not model.tables[0].weight[20].any()
    assert not model.tables[0].weight.grad[20].any()


def test_frozen_and_random_embeddings() -> None:
    frozen = _build("token_transformer", "linear", embedding_rate=0.0)
    assert not any(p.requires_grad for p in frozen.tables.parameters())
    summed = _build("token_transformer", "linear", embedding="random", embedding_width=10)
    assert summed.neighbours.shape == (2, 23, 8)  # noise of words does not ask how they are embedded
    inputs, _ = _inputs("token_transformer", [8])
    picture = summed.embed(inputs)
    assert picture.shape == (1, 8, 10)
    torch.testing.assert_close(picture, summed.tables[0](inputs[:, 0]) + summed.tables[1](inputs[:, 1]))


def test_drop_path_keeps_the_mean_and_only_acts_in_training() -> None:
    block = Block(EncoderParams(**ENCODER), drop_path=0.5)
    ones = torch.ones(4000, 1, 1)
    dropped = block._drop(ones)
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert abs(dropped.mean().item() - 1) < 0.1
    assert block.eval()._drop(ones) is ones


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 36}, r"models\.tested: width 36 must be a multiple of 2 \* heads = 8"),
        ({"stem": STEMS["convolution"] | {"kernel": 4}}, r"models\.tested\.stem: kernel 4 must be odd"),
        (
            {"stem": STEMS["convolution"] | {"channels": [8]}},
            r"channels \[8\] and strides .* the same number of layers",
        ),
        ({"kind": "asd"}, r"models\.tested\.kind: expected one of ast, token_transformer, .*found 'asd'"),
        ({"drop_path": 1.5}, r"models\.tested\.drop_path: input should be less than 1, found 1\.5"),
    ],
)
def test_wrong_params_are_named(changes: dict[str, Any], message: str) -> None:
    section = {"kind": "ast", "stem": STEMS["linear"], "pooling": "mean", **OWN["ast"], **changes}
    with pytest.raises(ParamsError, match=message):
        validate_model_params("tested", section)
