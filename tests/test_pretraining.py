"""Filling in hidden tokens: what is masked, what is predicted, that it is learned, and that nothing of test clips is."""

import csv
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from networks import STEMS, build, network
from test_stages_train import Paths, make_artifacts
from test_training import PLAIN, SETTINGS

from pipeline.artifacts.files import file_digest
from pipeline.artifacts.model import open_model
from pipeline.artifacts.pretrained import PRETRAINED
from pipeline.artifacts.vocabulary import open_vocabulary
from pipeline.check_params import load_experiment
from pipeline.errors import ArtifactError, CorpusError, ParamsError
from pipeline.evaluation.pseudo_perplexity import measure_surprise, perplexity_rows
from pipeline.execution.executors import ExecutionParams
from pipeline.models.base import NOT_NORMALISED
from pipeline.models.registry import validate_model_params
from pipeline.params import PARAMS_PATH
from pipeline.training import checkpoints, loop, neural
from pipeline.training.batches import Batch, Batches
from pipeline.training.distributed import ALONE
from pipeline.training.inputs import open_sequences
from pipeline.training.masked_tokens import MaskedTokens, Unigrams, draw_masked, predict_masked
from pipeline.training.pretraining import pretrain
from pipeline.training.settings import PretrainParams, TrainParams
from pipeline.training.token_predictor import TokenPredictor
from pipeline.vocabulary.registry import load_vocabulary_params
from stages import evaluate, perplexity, tokenize, train, vocabulary
from stages import pretrain as pretrain_stage
from tools.compose import compose, dump

MASKING = PretrainParams(
    epochs=2, batch_size=8, learning_rate=3e-3, schedule={"kind": "cosine", "warmup": 0.1}, mask_share=0.4, mask_span=3
)
TRAIN = TrainParams.model_validate(SETTINGS | {"augmentation": PLAIN, "epochs": 2})
SIZE = 9


# `textures` sums windows up, and reads decoded tokens, which are never masked.
PROJECTING = [stem for stem in STEMS if stem not in ("identity", "fixed_length", "textures")]
CASES = [(stem, "transformer") for stem in PROJECTING] + [("convolution", "conformer"), ("convolution_1d", "lstm")]


def make_section(stem: str = "convolution", encoder: str = "transformer", **changes: Any) -> dict[str, Any]:
    small = {"encoder__width": 16, "encoder__depth": 1}
    if encoder != "lstm":
        small["encoder__heads"] = 2
    return network("tokens", stem, encoder, **(small | changes))


def make_predictor(stem: str, encoder: str = "transformer") -> TokenPredictor:
    metadata = {"vocabulary_size": SIZE, "num_codebooks": 2, "bands": [[0, 12], [12, 24]]}
    reader = build(make_section(stem, encoder), metadata, 3)
    frequencies = torch.tensor([[1.0, 2, 3, 1, 1, 1, 1, 1, 1], [5, 1, 1, 1, 1, 1, 1, 1, 1]])
    return TokenPredictor(reader, frequencies / frequencies.sum(1, keepdim=True))


def make_batch(*lengths: int) -> Batch:
    tokens = torch.randint(0, SIZE, (len(lengths), 2, max(lengths)), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return Batch(tokens.masked_fill(~mask[:, None], SIZE), None if mask.all() else mask, torch.arange(len(lengths)))


def unsettle(model: TokenPredictor) -> TokenPredictor:
    """Return the predictor with a head that does not start at zero."""
    torch.nn.init.normal_(model.project.weight, std=0.1)
    return model


def test_spans_are_hidden_in_their_share_never_in_padding_and_in_every_clip() -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([[200]] * 300 + [[2]] * 20)
    masked = draw_masked(lengths, 200, 0.3, 8)
    assert 0.28 < masked[:300].float().mean() < 0.32
    assert not masked[300:, 2:].any()
    assert masked.any(1).all()
    edges = (masked[:300, 1:] != masked[:300, :-1]).float().sum(1).mean()
    assert 8 < edges < 14  # 2 * 0.3 * 0.7 at each of 25 borders; token by token it would be 84
    again = [draw_masked(lengths, 200, 0.3, 8, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*again)


@pytest.mark.parametrize(("stem", "encoder"), CASES)
def test_it_begins_as_the_unigram_model(stem: str, encoder: str) -> None:
    model, batch = make_predictor(stem, encoder).eval(), make_batch(48, 33)
    masked = torch.zeros(2, 48, dtype=torch.bool)
    masked[:, 4:12] = True
    losses, hits, counts = predict_masked(model, model, batch, masked)
    assert counts.tolist() == [8, 8]
    tokens = batch.inputs[:, :, 4:12]
    expected = torch.stack([-model.biases[book][tokens[:, book]] for book in range(2)]).mean((0, 2))
    torch.testing.assert_close(losses, expected)
    best = (tokens == torch.tensor([2, 0])[None, :, None]).float().mean((1, 2))
    torch.testing.assert_close(hits, best)


@pytest.mark.parametrize(("stem", "encoder"), CASES)
def test_padding_changes_no_clips_loss(stem: str, encoder: str) -> None:
    model, batch = unsettle(make_predictor(stem, encoder)).eval(), make_batch(52, 31)
    masked = draw_masked(torch.tensor([[52], [31]]), 52, 0.5, 4)
    losses = predict_masked(model, model, batch, masked).losses
    alone, *_ = predict_masked(model, model, Batch(batch.inputs[1:, :, :31], None, batch.rows[1:]), masked[1:, :31])
    torch.testing.assert_close(losses[1:], alone)


@pytest.mark.parametrize(("stem", "encoder"), CASES)
def test_hidden_tokens_are_not_seen_and_only_they_count(stem: str, encoder: str) -> None:
    model, batch = unsettle(make_predictor(stem, encoder)).eval(), make_batch(48, 48)
    masked = torch.zeros(2, 48, dtype=torch.bool)
    masked[:, 8:16] = True
    asked = []

    def forward(tokens: torch.Tensor, mask: torch.Tensor | None) -> Any:
        asked.append(tokens)
        return model(tokens, mask)

    losses, *_ = predict_masked(model, forward, batch, masked)
    other = batch.inputs.clone()
    other[:, :, 8:16] = (other[:, :, 8:16] + 1) % SIZE
    others, *_ = predict_masked(model, forward, batch._replace(inputs=other), masked)
    assert torch.equal(*asked)
    assert not torch.equal(losses, others)
    other[:, :, 8] = batch.inputs[:, :, 8]
    masked[:, 9:] = False  # one place is asked for: the tokens of the others are targets no more
    first, *_ = predict_masked(model, lambda *_: model(asked[0], None), batch, masked)
    second, *_ = predict_masked(model, lambda *_: model(asked[0], None), batch._replace(inputs=other), masked)
    assert torch.equal(first, second)


@pytest.mark.parametrize(("stem", "encoder"), CASES)
def test_every_weight_but_the_heads_learns(stem: str, encoder: str) -> None:
    model, batch = unsettle(make_predictor(stem, encoder)).train(), make_batch(48, 40)
    loss, _ = MaskedTokens(0.5, 4).loss(model, model, batch, torch.zeros(2, 0))
    loss.backward()  # type: ignore[no-untyped-call]
    without = {name for name, weights in model.named_parameters() if weights.grad is None or not weights.grad.any()}
    assert without == {"reader.head.classify.weight", "reader.head.classify.bias"}
    names = {f"reader.{name}" for name in model.reader.state_dict() if not name.startswith("head.")}
    assert set(model.learned()) == names | {"biases", "project.weight", "project.bias"}


def test_unigrams_know_frequencies_alone() -> None:
    sequences = [np.array([[0, 0, 1, 2]]), np.array([[0, 0]])]
    unigrams = Unigrams(sequences, 4)
    np.testing.assert_allclose(unigrams.frequencies, [[0.5, 0.2, 0.2, 0.1]])  # one was added to every count
    loss, accuracy = unigrams.measure(sequences)
    assert loss == pytest.approx((np.mean(-np.log([0.5, 0.5, 0.2, 0.2])) - np.log(0.5)) / 2)
    assert accuracy == 0.75


class Steady:
    """Token sequences of one token in each codebook, again and again: what stands around a token tells it."""

    source, time_axis = "tokens", 1
    front_end: dict[str, Any] = {}  # noqa: RUF012
    metadata: dict[str, Any] = {"vocabulary_size": SIZE, "num_codebooks": 2, "bands": [[0, 12], [12, 24]]}  # noqa: RUF012

    def arrays(self, clip_ids: list[str]) -> list[np.ndarray]:
        tokens = [np.array([[int(clip)], [2 * int(clip)]]) % SIZE for clip in clip_ids]
        return [
            np.repeat(w, self.num_frames(clip), 1).astype(np.uint16) for w, clip in zip(tokens, clip_ids, strict=True)
        ]

    stored = arrays

    def num_frames(self, clip_id: str) -> int:
        return 24 + int(clip_id) % 5


class Tokens:
    def token_vectors(self) -> list[np.ndarray]:
        return [np.random.default_rng(b).standard_normal((SIZE, 12)).astype(np.float32) for b in range(2)]


def run_steady(folder: Path, *, epochs: int, validation: tuple[str, ...] = (), stem: str = "linear") -> Any:
    params = validate_model_params("m", make_section(stem))
    masking = MASKING.model_copy(update={"epochs": epochs, "learning_rate": 1e-2})
    return pretrain(
        params, masking, masking.settings(TRAIN), Steady(), [str(i) for i in range(16)], validation, Tokens(),  # type: ignore[arg-type]
        seed=0, curves_path=folder, context=ALONE,
    )  # fmt: skip


def test_what_context_tells_is_learned_and_measured_beside_the_unigrams(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    _, trained = run_steady(tmp_path / "live", epochs=15, validation=("20", "21"))
    first, last = trained.history[0], trained.history[-1]
    assert last["masked_accuracy"] > 0.9 > 6 * last["unigram_accuracy"]
    assert last["loss"] < 0.5 < last["unigram_loss"]
    assert last["validation_accuracy"] > 0.9 > last["validation_unigram_accuracy"]
    assert last["validation_loss"] < first["validation_loss"]
    header = (tmp_path / "live/epochs.csv").read_text().splitlines()[0]
    assert header.endswith("unigram_loss,unigram_accuracy,validation_unigram_loss,validation_unigram_accuracy")


def test_a_killed_pretraining_ends_as_an_undisturbed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    whole, _ = run_steady(tmp_path / "whole", epochs=3)
    rows: list[Any] = []

    @contextmanager
    def killing(_names: Any, _run: Any) -> Iterator[Any]:
        def track(metrics: dict[str, float], _epoch: int) -> None:
            rows.append(metrics)
            if len(rows) == 3:
                raise KeyboardInterrupt

        yield track

    with monkeypatch.context() as patch:
        patch.setattr(neural, "open_trackers", killing)
        with pytest.raises(KeyboardInterrupt):
            run_steady(tmp_path / "killed", epochs=3)
    assert list(Path(checkpoints.CHECKPOINTS).glob("*.safetensors"))
    assert len((tmp_path / "killed/epochs.csv").read_text().splitlines()) == 4  # whole rows: it may be watched
    resumed, trained = run_steady(tmp_path / "again", epochs=3)
    assert (tmp_path / "again/epochs.csv").read_bytes() == (tmp_path / "whole/epochs.csv").read_bytes()
    assert len(trained.history) == 3
    for name, values in whole.items():
        np.testing.assert_array_equal(resumed[name], values)


def make_sequences(folder: Path, *, poisoned: bool = False) -> Paths:
    """Write six clips, a vocabulary and their token sequences; poisoning changes those of the test clips alone."""
    paths = make_artifacts(folder, poisoned=poisoned)
    params: Any = load_vocabulary_params("kmeans", REPOSITORY / PARAMS_PATH)
    params = params.model_copy(update={"num_tokens": 8, "sample_frames": 100, "iterations": 3})
    fitted, tokens = folder / "tokens" / "1.zarr", folder / "tokens.parquet"
    vocabulary.run(params, paths.spectrogram, paths.for_training().development, fitted, fold="1")
    execution = ExecutionParams(executor="local", scheduler="", workers=1, memo=folder / "memo")
    tokenize.run(execution, paths.source, fitted, tokens, fold="1")
    return paths._replace(source=tokens, vocabulary=fitted, pretrained=folder / "pretrained/m/1/0")


def run_pretrain(paths: Paths, section: dict[str, Any]) -> Path:
    assert paths.vocabulary
    assert paths.pretrained
    development = paths.for_training().development
    where = pretrain_stage.Paths(development, paths.source, paths.vocabulary, paths.pretrained, paths.curves)
    pretrain_stage.run(validate_model_params("m", section), MASKING, TRAIN, where, model="m", fold="1", seed=0)
    return paths.pretrained


def test_clips_that_outgrow_a_batch_stop_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.training.inputs.FRAMES_PER_BATCH", 5)
    with pytest.raises(CorpusError, match=r"training clips: expected at most .*5 frames.* set corpus\.max_duration"):
        run_pretrain(make_sequences(tmp_path / "a"), make_section())


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    folder = tmp_path_factory.mktemp("learned")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        paths = make_sequences(folder / "a")
        run_pretrain(paths, make_section())
    return paths


def test_nothing_is_learned_from_test_clips(learned: Paths, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    poisoned = make_sequences(tmp_path / "b", poisoned=True)
    assert file_digest(poisoned.source) != file_digest(learned.source)
    run_pretrain(poisoned, make_section())
    assert poisoned.pretrained
    assert learned.pretrained
    cards = [PRETRAINED.read_card(path) for path in (poisoned.pretrained, learned.pretrained)]
    for key in ("weights", "measures", "source"):
        assert cards[0][key] == cards[1][key]


def run_train(paths: Paths, section: dict[str, Any], monkeypatch: Any, **changes: Any) -> dict[str, Any]:
    settings = TRAIN.model_copy(update={"epochs": 1, **changes})
    monkeypatch.setattr(neural, "load_params", lambda kind, section: settings)
    train.run(validate_model_params("m", section), paths.for_training(), model="m", fold="1", seed=0)
    card: dict[str, Any] = json.loads((paths.model / "model.json").read_text())
    return card


def test_training_starts_from_what_was_pretrained_but_for_the_head(
    learned: Paths, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    card = run_train(learned._replace(model=tmp_path / "m/1/0"), make_section(), monkeypatch, learning_rate=1e-12)
    assert learned.pretrained
    learned_weights, metadata = PRETRAINED.open(learned.pretrained)
    weights = {n.removeprefix("reader."): v for n, v in learned_weights.items() if n.startswith("reader.")}
    assert card["input"]["masked_pretraining"]["weights"] == metadata["weights"]
    trained = open_model(tmp_path / "m/1/0").weights
    assert {name for name in trained if name not in weights} == {
        "head.classify.weight",
        "head.classify.bias",
    }
    for name, values in weights.items():
        if "running_" not in name and "num_batches" not in name:  # statistics of batch norms follow every batch
            np.testing.assert_allclose(trained[name], values, atol=1e-6, err_msg=name)
    without = learned._replace(model=tmp_path / "n/1/0", pretrained=None)
    assert "masked_pretraining" not in run_train(without, make_section(), monkeypatch, learning_rate=1e-12)["input"]
    fresh = open_model(tmp_path / "n/1/0").weights
    assert not np.allclose(fresh["stem.project.weight"], trained["stem.project.weight"])
    np.testing.assert_allclose(fresh["head.classify.weight"], trained["head.classify.weight"], atol=1e-6)
    evaluate.run(learned.clips, learned.split, learned.source, tmp_path / "m/1/0", tmp_path / "p.parquet")


def test_another_size_fold_or_vocabulary_is_refused_by_name(learned: Paths, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert learned.pretrained
    paths = learned._replace(model=tmp_path / "m/1/0", curves=tmp_path / "curves")
    with pytest.raises(
        ArtifactError, match=r"weights reader\.encoder\.[\w.]+: expected \(.*, as the model has, found \(.* more"
    ):
        run_train(paths, make_section(encoder__mlp_ratio=1.0), monkeypatch)
    with pytest.raises(ArtifactError, match=r"weights reader\.encoder\.blocks\.1[\w.]+: expected \(.*, found none"):
        run_train(paths, make_section(encoder__depth=2), monkeypatch)
    weights, card = PRETRAINED.open(learned.pretrained)
    for key, value, what in (("fold", "2", "fold"), ("source", "another", "vocabulary")):
        other = tmp_path / key / "m/1/0"
        metadata = {name: metadata for name, metadata in card.items() if name != "weights"}
        PRETRAINED.write(other, weights, metadata | {key: value})
        message = rf"metadata {key} \({what}\): expected .*, found {value}; rerun it .*pretrain@m-1-0"
        with pytest.raises(ArtifactError, match=message):
            run_train(paths._replace(pretrained=other), make_section(), monkeypatch)
    broken = tmp_path / "broken/m/1/0"
    shutil.copytree(learned.pretrained, broken)
    (broken / "weights.safetensors").write_bytes(b"")
    with pytest.raises(ArtifactError, match="as written, found"):
        run_train(paths._replace(pretrained=broken), make_section(), monkeypatch)


def test_perplexity_is_of_every_token_of_the_test_clips_once(learned: Paths, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert learned.vocabulary
    assert learned.pretrained
    table = tmp_path / "p.csv"
    perplexity.run(learned.clips, learned.split, learned.source, learned.vocabulary, learned.pretrained, table)
    rows = list(csv.DictReader(table.open()))
    assert [(row["class"], row["num_clips"], row["num_places"]) for row in rows] == [
        ("(all)", "2", "68"), ("rain", "2", "68"),  # clips 3 and 5, of 33 and 35 frames; no dog is tested
    ]  # fmt: skip
    assert 1 < float(rows[0]["pseudo_perplexity"]) < 16
    assert 1 < float(rows[0]["unigram_perplexity"]) < 16


def test_a_model_that_knows_frequencies_alone_is_as_perplexed_as_they_are() -> None:
    model, inputs = make_predictor("linear"), Steady()
    ids = ["1", "2", "12"]
    unigrams = Unigrams(inputs.arrays(ids), SIZE)
    model.biases.data = torch.from_numpy(unigrams.frequencies).float().log()
    surprise, counts = measure_surprise(model, Batches(inputs, ids, NOT_NORMALISED), share=0.3, span=4)
    np.testing.assert_allclose(surprise, unigrams.losses(inputs.arrays(ids)), rtol=1e-5)
    assert counts.tolist() == [25, 26, 26]
    rows = perplexity_rows(np.log([2.0, 4, 8]), np.log([2.0, 2, 2]), np.array([1, 1, 2]), np.eye(3)[:, :2], ["a", "b"])
    assert [row[:3] for row in rows] == [("(all)", 3, 4), ("a", 1, 1), ("b", 1, 1)]
    np.testing.assert_allclose([row.pseudo_perplexity for row in rows], [2 ** (9 / 4), 2, 4])
    np.testing.assert_allclose([row.unigram_perplexity for row in rows], 2)


def test_sequences_of_another_vocabulary_are_refused(learned: Paths, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert learned.vocabulary
    other = open_vocabulary(learned.vocabulary)
    monkeypatch.setattr(type(other), "digest", lambda self: "another")
    with pytest.raises(ArtifactError, match="metadata vocabulary: expected another"):
        open_sequences(learned.source, other)


def test_settings_are_trains_where_pretraining_has_none_of_its_own() -> None:
    settings = MASKING.settings(
        TRAIN.model_copy(update={"patchout": 0.5, "sampling": "balanced", "gradient_clip": 7.0})
    )
    assert (settings.epochs, settings.batch_size, settings.gradient_clip) == (2, 8, 7.0)
    assert (settings.patchout, settings.sampling, settings.early_stop_patience) == (0.0, "shuffled", 0)
    late = TrainParams.model_validate(SETTINGS | {"epochs": 9, "average": {"kind": "epochs", "first": 5, "last": 9}})
    with pytest.raises(ParamsError, match=r"pretrain: average: expected epochs of the 2 that are run, found 5 to 9"):
        MASKING.settings(late)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["experiment.pretrained_models=[ast]"], "expected models that read tokens, found ast"),
        (["experiment.pretrained_models=[none]"], "expected entries of `models`, found none"),
        (
            ["experiment.pretrained_models=[bag_of_tokens]"],
            "expected networks with input.kind tokens and one of the encoders transformer, conformer, lstm, found",
        ),
        (
            ["experiment.pretrained_models=[token_transformer]", "experiment.vocabularies=[]"],
            "vocabularies: expected at least one",
        ),
        (
            [
                "experiment.pretrained_models=[token_transformer]",
                "train.average={kind: last, epochs: 16}",
                "pretrain.epochs=9",
            ],
            "average: expected epochs of the 9 that are run",
        ),
        (
            [
                "experiment.token_models=[]",
                "experiment.ensembles=[]",
                "experiment.pretrained_models=[token_transformer]",
                "models.token_transformer.window={length: 0.5, hop: 0.5, fill: shift, pooling: mean}",
                "vocabularies.kmeans.bpe={num_tokens: 600}",
            ],
            "token_transformer cannot read kmeans: window: expected null with a vocabulary of merged tokens",
        ),
        (
            [
                "experiment.pretrained_models=[token_transformer]",
                "models.token_transformer.pretrained={kind: sonolex, source: models/m, digest: null, classes: null}",
            ],
            r"expected models that begin with the weights of `pretrain` alone.*token_transformer\.pretrained to null",
        ),
    ],
)
def test_what_cannot_be_pretrained_is_named(changes: list[str], message: str, tmp_path: Path) -> None:
    document, _ = compose("demo", changes, REPOSITORY / "recipes")
    (tmp_path / "params.yaml").write_text(dump(document))
    with pytest.raises(ParamsError, match=message):
        load_experiment(tmp_path / "params.yaml")
