"""Networks that read tokens, beyond the contract of test_models.py."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from networks import LEVELS, METADATA, NUM_CLASSES, STEMS, build, changed, make_inputs, network, params_of
from test_features import make_space
from test_resuming import _kill_and_resume
from test_training import PLAIN, train_small

from pipeline.artifacts.vocabulary import NUM_SPECIAL_TOKENS, Vocabulary
from pipeline.check_params import load_experiment
from pipeline.errors import ParamsError
from pipeline.models.encoders.lstm import Lstm, LstmParams
from pipeline.params import read_params
from pipeline.vocabulary.rebuilding import rebuild
from tools.compose import compose, dump

BASE = read_params(REPOSITORY / "recipes" / "base.yaml")["models"]
NETWORKS = {name: section for name, section in BASE.items() if section["kind"] == "network"}
LSTM = network("tokens", "linear", "lstm", "last", encoder__width=16)
SIZE = 7

# Tokens of eight features each; where codebooks are narrower, the rest of a row is padding.
BANDS = {
    "whole frames": [[0, 8]],
    "bands": [[0, 3], [3, 8]],
    "residual": [[0, 8], [0, 8], [0, 8]],
    "residual bands": [[0, 4], [4, 8], [0, 4], [4, 8]],
    "bands refined in part": [[0, 8], [2, 5]],
}


def _metadata(bands: list[list[int]]) -> dict[str, Any]:
    return {"vocabulary_size": SIZE, "num_codebooks": len(bands), "bands": bands}


@pytest.mark.parametrize("bands", BANDS.values(), ids=BANDS)
def test_the_feature_map_is_what_the_tokens_stand_for(bands: list[list[int]]) -> None:
    generator = np.random.default_rng(0)
    codebooks = generator.standard_normal((len(bands), SIZE, 8)).astype(np.float32)
    mean, scale = generator.standard_normal(8).astype(np.float32), np.linspace(0.5, 2, 8, dtype=np.float32)
    vocabulary = Vocabulary(
        Path(),
        make_space(8, mean=mean, scale=scale),
        codebooks,
        np.empty(0),
        np.empty(0),
        {"kind": "residual", "bands": bands},
    )
    tokens = generator.integers(0, SIZE, (len(bands), 11)).astype(np.uint16)

    model = build(LSTM, _metadata(bands), 3)
    model.input.load_codebooks(vocabulary.token_vectors())
    with torch.no_grad():
        features = model.embed(torch.from_numpy(tokens.astype(np.int64))[None])[0].numpy()

    np.testing.assert_allclose(features, (rebuild(vocabulary, tokens) - mean) / scale, atol=1e-5)


def test_padding_and_mask_tokens_are_average_frames() -> None:
    model = _build(LSTM, _metadata([[0, 4], [0, 4]]))
    special = model.embed(torch.tensor([[[SIZE, SIZE + 1]] * 2]))
    assert not special.any()
    assert model(torch.full((1, 2, 5), SIZE + 1), None).isfinite().all()


def test_near_tokens_are_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 16,384 tokens all distances at once would take a gigabyte."""
    whole = _build(LSTM, _metadata([[0, 4]])).input.neighbours
    monkeypatch.setattr("pipeline.models.inputs.tokens._TOKENS_AT_ONCE", 3)
    assert torch.equal(_build(LSTM, _metadata([[0, 4]])).input.neighbours, whole)
    assert whole[0, SIZE:].tolist() == [[SIZE + i] * (SIZE - 1) for i in range(3)]
    assert all(token not in near for token, near in enumerate(whole[0, :SIZE].tolist()))


def test_random_tokens_are_learned_and_summed_over_codebooks() -> None:
    section = changed(LSTM, {"input.embedding": "random", "input.embedding_width": 5})
    model = _build(section, _metadata([[0, 4], [0, 4]]))
    tokens, tables = torch.randint(0, SIZE, (1, 2, 6)), model.input.tables
    torch.testing.assert_close(model.embed(tokens), tables[0](tokens[:, 0]) + tables[1](tokens[:, 1]))


def _build(section: dict[str, Any], metadata: dict[str, Any]) -> Any:
    return build(section, metadata, 3).eval()


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "psla"])
def test_every_network_of_the_base_reads_a_clip(name: str) -> None:
    frames = METADATA["frames"] | {"n_mels": 64}
    reads = NETWORKS[name]["input"]["kind"]
    levels = LEVELS | {"n_mels": 64, "log_floor": -16.0, "frames_per_token": 1}
    model = _build(NETWORKS[name], frames if reads == "frames" else levels | _metadata([[0, 64]]))
    inputs = torch.randn(2, 40, 64) if reads == "frames" else torch.randint(0, SIZE, (2, 1, 40))
    with torch.no_grad():
        assert model(inputs, None).isfinite().all()


def test_bert_and_frames_are_one_network_behind_tokens_and_frames() -> None:
    """Peers 3.3.1, 3.3.2 and 3.3.3: no class token, a token without gradient, frames that nobody could compare with."""
    bert = _build(BASE["bert"], _metadata([[0, 64]]))
    frames = _build(BASE["frames_transformer"], METADATA["frames"] | {"n_mels": 64})
    assert str(bert.encoder) == str(frames.encoder)
    assert bert.head.tokens.shape == frames.head.tokens.shape == (1, 128)
    bert(torch.arange(SIZE)[None, None], None).sum().backward()
    gradient = bert.input.weights[0].grad
    assert gradient[:SIZE].abs().sum(1).all()
    assert not gradient[SIZE:].any()


def test_a_backward_direction_starts_at_the_clips_own_end() -> None:
    """Peer bug 3.3.1: lengths were those of the padded batch, so it began in the padding."""
    model = _build(LSTM, _metadata([[0, 4]]))
    tokens = torch.randint(0, SIZE, (1, 1, 9))
    padded = torch.nn.functional.pad(tokens, (0, 50), value=SIZE)
    with torch.no_grad():
        alone = model(tokens, None)
        torch.testing.assert_close(model(padded, torch.arange(59)[None] < 9), alone)
        assert not torch.allclose(model(padded, None), alone, atol=1e-4)


def test_the_matrices_of_an_lstm_decay() -> None:
    from pipeline.training.optimiser import _kinds_of_weights

    model = _build(changed(LSTM, {"encoder.depth": 2}), _metadata([[0, 4]]))
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, plain, _ = ([names[id(p)] for p in kind] for kind in _kinds_of_weights(model))
    recurrent = ("encoder.forwards.", "encoder.backwards.")
    assert len([name for name in decayed if name.startswith(recurrent) and ".weight_" in name]) == 8
    assert len([name for name in plain if name.startswith(recurrent) and ".bias_" in name]) == 8


def test_an_lstm_reads_as_one_of_packed_clips_does() -> None:
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    stem = _build(LSTM, _metadata([[0, 4]])).stem
    ours = Lstm(LstmParams(kind="lstm", input_size=None, width=16, depth=2, dropout=0.0), stem)
    packed = torch.nn.LSTM(16, 8, 2, batch_first=True, bidirectional=True)
    with torch.no_grad():
        for layers, direction in ((ours.forwards, ""), (ours.backwards, "_reverse")):
            for number, layer in enumerate(layers):
                for name, weight in layer.named_parameters():
                    getattr(packed, name.replace("l0", f"l{number}{direction}")).copy_(weight)
    lengths, x = torch.tensor([3, 9, 6, 1]), torch.randn(4, 9, 16)
    mask = torch.arange(9) < lengths[:, None]
    theirs = packed(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))[0]
    torch.testing.assert_close(ours(x, mask)[0], pad_packed_sequence(theirs, batch_first=True)[0])
    torch.testing.assert_close(ours(x, None)[0], packed(x)[0])


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            changed(LSTM, {"encoder.width": 15}),
            r"encoder\.width: expected an even number, half of it for each direction",
        ),
        (changed(LSTM, {"head.pooling": "class"}), r"models\.tested\.head\.pooling: .*'mean', 'mean_max' or 'last'"),
        (LSTM | {"stem": STEMS["convolution_1d"] | {"kernel": 4}}, r"kernel 4 must be odd"),
        (LSTM | {"stem": STEMS["convolution_1d"] | {"strides": [[2, 2], [1, 1]]}}, r"strides\.0: .*valid integer"),
        (changed(LSTM, {"input.embedding_rate": 2.0}), r"input\.embedding_rate: .* less than or equal to 1"),
    ],
)
def test_wrong_params_are_named(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        params_of(section)


def test_models_in_the_wrong_list_are_named_before_anything_runs(tmp_path: Path) -> None:
    lists = [
        "experiment.frame_models=[ast, lstm, bert]",
        "experiment.token_models=[token_transformer, frames_lstm, mlp]",
    ]
    document, _ = compose("demo", lists, REPOSITORY / "recipes")
    (tmp_path / "params.yaml").write_text(dump(document))
    with pytest.raises(ParamsError) as caught:
        load_experiment(tmp_path / "params.yaml")
    for expected in (
        "experiment.frame_models: expected models that read frames, found lstm, which reads tokens; list it under",
        "found bert, which reads tokens",
        "experiment.token_models: expected models that read tokens, found frames_lstm, which reads frames",
        "found mlp, which reads frames; list it under experiment.frame_models",
    ):
        assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("experiment.frame_models=[nope]", "experiment.frame_models: expected entries of `models`, found nope"),
        (
            "experiment.token_models=[ast]",
            "found ast, which reads frames; take it out, it stands under experiment.frame_mod",
        ),
        ("models=3", "models: expected entries, as recipes/base.yaml has them, found 3"),
    ],
)
def test_the_first_mistake_named_is_the_list_that_has_it(override: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(dump(compose("demo", [override], REPOSITORY / "recipes")[0]))
    with pytest.raises(ParamsError) as caught:
        load_experiment(tmp_path / "params.yaml")
    assert expected in str(caught.value).splitlines()[0]


def test_a_perceptron_cuts_long_clips_and_fills_up_short_ones_with_silence() -> None:
    model = _build(changed(BASE["mlp"], {"stem.frames": 30}), METADATA["frames"] | {"n_mels": 4})
    silence = (-16.0 - -6.0) / (2.0 * 4.0)
    clips = torch.randn(2, 40, 4)
    mask = torch.arange(40) < torch.tensor([[40], [12]])
    with torch.no_grad():
        logits = model(clips, mask)
        torch.testing.assert_close(logits[:1], model(clips[:1, :30], None))
        short = torch.cat([clips[1:, :12], torch.full((1, 18, 4), silence)], dim=1)
        torch.testing.assert_close(logits[1:], model(short, None))


def _frames_lstm() -> Any:
    section = network("frames", "convolution_1d", "lstm", "last", input__normalisation="none") | {
        "stem": {"kind": "convolution_1d", "channels": [8], "strides": [2], "kernel": 3},
        "encoder": {"kind": "lstm", "input_size": None, "width": 16, "depth": 2, "dropout": 0.2},
    }
    return build(section, {"n_mels": 6}, 3, seed=5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_an_lstm_learns_in_every_precision(tmp_path: Path, precision: str) -> None:
    changes: dict[str, Any] = {"epochs": 5, "learning_rate": 2e-2, "augmentation": PLAIN, "precision": precision}
    _, trained = train_small(tmp_path / "c", model=_frames_lstm(), **changes)
    assert trained.history[-1]["loss"] < trained.history[0]["loss"] - 0.1


def test_an_lstm_that_was_killed_ends_as_an_undisturbed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_training.make_model", _frames_lstm)
    _kill_and_resume(tmp_path, monkeypatch)


# audio-tokens (danavery, 2024), at 500 tokens and 543 classes
TOKENS_500 = METADATA["tokens"] | {"vocabulary_size": 500, "num_codebooks": 1, "bands": [[0, 64]]}
# BERT has learned positions for 512 tokens, two token types, and a norm of both; the transformer has a class token, a norm
# after its blocks and one in its head, and a scale of its positions. BERT's pooler has the size of the linear stem.
BERT_HAS, OURS_HAS = (512 + 2 + 2) * 768, (1 + 2 + 2) * 768 + 1


@pytest.mark.parametrize(
    ("name", "published", "width", "differs"),
    [
        ("lstm", 3_838_495, 256, 0),
        ("bag_of_embeddings", 801_567, 768, 0),
        ("bert", 8_876_319, 768, OURS_HAS - BERT_HAS),
    ],
)
def test_networks_have_the_size_of_those_of_audio_tokens(name: str, published: int, width: int, differs: int) -> None:
    document, mistakes = compose("audio_tokens", [], REPOSITORY / "recipes")
    assert not mistakes
    model = build(document["models"][name], TOKENS_500, 543)
    special = NUM_SPECIAL_TOKENS * width  # rows of the table
    assert sum(weights.numel() for weights in model.parameters()) == published + special + differs


def test_an_lstm_reads_positions_as_a_stem_leaves_them() -> None:
    model = build(network("tokens", "identity", "lstm", "last", encoder__width=16, encoder__input_size="stem"))
    assert model.encoder.forwards[0].input_size == model.input.num_features != 16
    projected = build(network("tokens", "linear", "lstm", "last", encoder__width=16, encoder__input_size=8))
    assert projected.encoder.forwards[0].input_size == projected.stem.num_features == 8
    inputs = make_inputs("tokens", [5, 9])
    assert model(*inputs).shape == projected(*inputs).shape == (2, NUM_CLASSES)
    with pytest.raises(
        ParamsError, match=r"stem\.kind: expected one of .* encoder\.kind lstm, which reads positions as"
    ):
        params_of(network("tokens", "linear", "lstm", "last", encoder__input_size="stem"))
