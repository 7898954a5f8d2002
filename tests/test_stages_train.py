"""The stages train and evaluate on small artifacts: no leak from other roles, refusals by name, prediction from a folder."""

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import make_spectrogram
from networks import changed, network
from safetensors.numpy import load_file
from test_ast import SMALL
from test_checkpoint_formats import MEAN, STD, make_original, original_weights
from test_psla import SECTION as PSLA

from pipeline.artifacts.clips import CLIPS, link_of
from pipeline.artifacts.files import file_digest
from pipeline.artifacts.model import open_model
from pipeline.artifacts.predictions import matrix, open_predictions
from pipeline.artifacts.splits import SPLIT
from pipeline.errors import ArtifactError, CorpusError, SonolexError
from pipeline.evaluation import classical_prediction
from pipeline.evaluation.averaging import average_logits
from pipeline.evaluation.metric_functions import to_scores
from pipeline.evaluation.network_prediction import build_network, predict_time_steps
from pipeline.models.registry import validate_model_params
from pipeline.params import PARAMS_PATH, load_params
from pipeline.training import checkpoints, classical, neural
from pipeline.training.batches import Batches
from pipeline.training.inputs import open_inputs_of
from pipeline.training.logits import predict_logits
from pipeline.training.settings import TrainParams
from stages import development, evaluate, train

ROOT = Path(__file__).parent.parent
ROLES = ["train", "train", "train", "test", "train", "test"]
STEM = {"kind": "convolution", "channels": [4], "strides": [[4, 4]], "kernel": 3}
ENCODER = {"kind": "transformer", "width": 8, "depth": 1, "heads": 2, "mlp_ratio": 1.0, "drop_path": 0.0}
AST = network() | {"stem": STEM, "encoder": ENCODER}
STATISTICS = {"kind": "frame_statistics", "penalty": 1.0, "kernel_width": 1.0}
TEXTURES: dict[str, Any] = {
    "kind": "texture_statistics",
    "input": {"kind": "frames"},
    "floor": 0.4,
    "augmented_copies": {"cut": 0.2, "speed": 0.1, "bands": 1, "gain": 1.0, "tilt": 1.0},
    "mixtures": 2,
    "mixture_gain": 1.0,
    "ridge": 0.1,
    "kernel_width": 1.0,
}


class Paths(NamedTuple):
    """Paths of all that the stages train and evaluate read and write."""

    clips: Path
    split: Path
    spectrogram: Path
    source: Path  # the spectrogram, or tokens
    vocabulary: Path | None
    model: Path
    curves: Path
    pretrained: Path | None = None

    def for_training(self) -> train.Paths:
        """Collect the development set of the split, beside it, and return the paths of the stage train."""
        tables = self.split.with_name("development.parquet"), self.split.with_name("targets.parquet")
        development.run(self.clips, self.split, self.spectrogram / "index.parquet", *tables)
        return train.Paths(*tables, self.source, self.vocabulary, self.model, self.curves, self.pretrained)


def make_artifacts(
    folder: Path,
    *,
    poisoned: bool = False,
    n_mels: int = 8,
    label_kind: str = "one",
    classes: Sequence[str] = ("dog", "rain"),
) -> Paths:
    """Write six clips of two classes; poisoning changes the frames and the labels of the test clips alone."""
    generator = np.random.default_rng(0)
    ids = [f"clip{i}" for i in range(6)]
    frames = {clip: generator.normal(i % 2, 1, (30 + i, n_mels)).astype(np.float32) for i, clip in enumerate(ids)}
    labels = [[i % 2] for i in range(6)]
    if poisoned:
        for i in (3, 5):
            frames[ids[i]], labels[i] = frames[ids[i]] * 0 + 500, [1 - i % 2]
    columns: dict[str, Any] = {
        "clip_id": ids,
        "source": [f"{clip}.wav" for clip in ids],
        "member": [""] * 6,
        "offset": [0] * 6,
        "size": [0] * 6,
        "start": [0.0] * 6,
        "duration": [0.0] * 6,
        "labels": labels,
        "group": ids,
        "fold": ["1"] * 6,
        "content": ids,
        "unknown": [[]] * 6,
        "weight": [0.0] * 6,
    }
    metadata = {"corpus": "test", "classes": list(classes), "label_kind": label_kind, "licence": ""}
    CLIPS.write(folder / "clips.parquet", columns, metadata)
    roles = {"clip_id": ids, "role": ROLES}
    SPLIT.write(folder / "split.parquet", roles, {"fold": "1", "seed": 0, "rule": "by hand"})
    spectrogram = make_spectrogram(folder / "spectrogram", frames)
    tables = folder / "clips.parquet", folder / "split.parquet"
    return Paths(*tables, spectrogram, spectrogram, None, folder / "m/1/0", folder / "curves")


@pytest.fixture(autouse=True)
def short_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = load_params(TrainParams, "train", ROOT / PARAMS_PATH).model_copy(update={"epochs": 2})
    monkeypatch.setattr(neural, "load_params", lambda kind, section: settings)
    monkeypatch.setattr(checkpoints, "CHECKPOINTS", tmp_path / "checkpoints")
    monkeypatch.chdir(tmp_path)


def run_train(paths: Paths, section: dict[str, Any]) -> dict[str, Any]:
    train.run(validate_model_params("m", section), paths.for_training(), model="m", fold="1", seed=0)
    card: dict[str, Any] = json.loads((paths.model / "model.json").read_text())
    return card


def run_evaluate(paths: Paths, source: Path | None = None) -> Path:
    predictions = paths.model.parent / "predictions.parquet"
    evaluate.run(paths.clips, paths.split, source or paths.source, paths.model, predictions)
    return predictions


@pytest.mark.parametrize("section", [STATISTICS, TEXTURES], ids=["frame_statistics", "frame_textures"])
def test_frames_that_are_read_when_they_are_used_fit_the_same_model(
    tmp_path: Path, section: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = [run_train(make_artifacts(tmp_path / "loaded"), section)["weights"]]
    monkeypatch.setattr(classical, "FRAMES_BYTES", 0)
    weights.append(run_train(make_artifacts(tmp_path / "read"), section)["weights"])
    assert weights[0] == weights[1]


def test_a_clip_that_outgrows_a_batch_stops_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = make_artifacts(tmp_path)
    monkeypatch.setattr("pipeline.training.inputs.FRAMES_PER_BATCH", 33)
    monkeypatch.setattr(neural, "run_epochs", None)
    with pytest.raises(CorpusError, match=r"expected at most .*33 frames.*found clip4 of .*set corpus\.max_duration"):
        run_train(paths, AST)


@pytest.mark.parametrize("section", [STATISTICS, TEXTURES], ids=["frame_statistics", "frame_textures"])
def test_baselines_predict_in_batches_that_are_bounded_in_frames(
    tmp_path: Path, section: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = make_artifacts(tmp_path)
    run_train(paths, section)
    together = matrix(open_predictions(run_evaluate(paths)), "logits")
    monkeypatch.setattr(classical_prediction, "FRAMES_PER_BATCH", 1)
    alone = matrix(open_predictions(run_evaluate(paths)), "logits")
    np.testing.assert_allclose(alone, together, atol=1e-5)


@pytest.mark.parametrize("section", [AST, STATISTICS, TEXTURES], ids=["ast", "frame_statistics", "frame_textures"])
def test_training_sees_nothing_of_the_test_clips(tmp_path: Path, section: dict[str, Any]) -> None:
    clean, poisoned = make_artifacts(tmp_path / "clean"), make_artifacts(tmp_path / "poisoned", poisoned=True)
    cards = [run_train(paths, section) for paths in (clean, poisoned)]
    assert cards[0]["weights"] == cards[1]["weights"]
    assert cards[0]["input"] == cards[1]["input"]  # the normalisation too
    digests = {file_digest(paths.model / "weights.safetensors") for paths in (clean, poisoned)}
    assert len(digests) == 1


def test_the_table_of_epochs_has_a_header_and_metrics_where_clips_validate(tmp_path: Path) -> None:
    """Peers' tables had none, and theirs were of the test clips: poisoned test clips change nothing here."""
    tables = []
    for name in ("clean", "poisoned"):
        paths = make_artifacts(tmp_path / name, poisoned=name == "poisoned")
        run_train(paths, AST)
        with (paths.curves / "epochs.csv").open() as file:
            plain = list(csv.DictReader(file))
        columns = ["epoch", "loss", "learning_rate", "gradient_norm"]
        assert list(plain[0]) == columns
        roles = ["train", "validation", "validation", "test", "train", "test"]
        SPLIT.write(
            paths.split,
            {"clip_id": [f"clip{i}" for i in range(6)], "role": roles},
            {"fold": "1", "seed": 0, "rule": "-"},
        )
        run_train(paths, AST)
        with (paths.curves / "epochs.csv").open() as file:
            tables.append(list(csv.DictReader(file)))
    rows = tables[0]
    assert [row["epoch"] for row in rows] == ["1", "2"]
    metrics = ["validation_loss", "accuracy", "mAP", "auc", "precision", "recall", "f1", "d_prime"]
    assert list(rows[0])[4:] == [*metrics, "cumulative_accuracy", "cumulative_mAP", "cumulative_auc"]
    assert rows[0]["cumulative_mAP"] == rows[0]["mAP"]
    for row, poisoned in zip(*tables, strict=True):
        assert row == poisoned
    timing = json.loads(Path("results/stages/train-m-1-0.json").read_text())["timing"]
    assert timing["training_seconds"] > 0
    assert all(0 <= epoch["input_fraction"] < 1 for epoch in timing["epochs"])


@pytest.mark.parametrize("label_kind", ["one", "many"])
def test_kept_epochs_predict_the_mean_of_their_probabilities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label_kind: str
) -> None:
    settings = neural.load_params(TrainParams, "train").model_copy(update={"epochs": 3, "learning_rate": 0.1})
    keeping = settings.model_copy(update={"checkpoint_ensemble": [1, 3]})
    paths = make_artifacts(tmp_path / "a", label_kind=label_kind)
    monkeypatch.setattr(neural, "load_params", lambda kind, section: settings)
    card = run_train(paths, AST)
    assert "epochs" not in card
    assert {path.name for path in paths.model.iterdir()} == {"weights.safetensors", "model.json"}

    monkeypatch.setattr(neural, "load_params", lambda kind, section: keeping)
    kept_card = run_train(paths, AST)
    assert kept_card["weights"] == card["weights"]  # keeping epochs changes nothing of the training
    assert kept_card["num_parameters"] == 2 * card["num_parameters"]
    inputs = open_inputs_of(open_model(paths.model), paths.source)
    members = []
    for epoch in (1, 3):
        network = build_network(
            replace(open_model(paths.model), weights=load_file(paths.model / f"epochs/{epoch}.safetensors"))
        )
        batches = Batches(inputs, ["clip3", "clip5"], card["input"]["normalisation"])
        logits = predict_logits(network, batches, 2)
        members.append(logits.softmax(1) if label_kind == "one" else logits.sigmoid())
    assert (members[0] - members[1]).abs().max() > 1e-3  # of unlike weights
    predictions = open_predictions(run_evaluate(paths))
    found = to_scores(matrix(predictions, "logits"), link_of(predictions.metadata))
    np.testing.assert_allclose(found, (members[0] + members[1]) / 2, atol=1e-6)
    assert predictions.metadata["weights"] != card["weights"]
    (paths.model / "epochs/3.safetensors").write_bytes((paths.model / "epochs/1.safetensors").read_bytes())
    with pytest.raises(ArtifactError, match=r"epochs/3\.safetensors: expected digest"):
        run_evaluate(paths)


@pytest.mark.parametrize("link", ["softmax", "sigmoid"])
def test_the_mean_of_probabilities_is_stored_as_logits_however_small(link: Any) -> None:
    members = [np.array([[2.0, -1.0, 0.5]], np.float32), np.array([[-3.0, 4.0, 0.0]], np.float32)]
    mean = (to_scores(members[0], link) + to_scores(members[1], link)) / 2
    np.testing.assert_allclose(to_scores(average_logits(members, link), link), mean, rtol=1e-6)
    sure = [np.array([[200.0, -200.0]], np.float32)] * 2
    found = average_logits(sure, link)
    np.testing.assert_allclose(found[0, 0] - found[0, 1], 400, rtol=1e-6)


def test_a_model_of_other_classes_is_refused(tmp_path: Path) -> None:
    paths = make_artifacts(tmp_path / "a")
    run_train(paths, STATISTICS)
    three = make_artifacts(tmp_path / "b", classes=("dog", "rain", "saw"))
    with pytest.raises(CorpusError, match=r"m/1/0: classes: expected those of .*clips\.parquet \(3\), found 2 others"):
        run_evaluate(three._replace(model=paths.model))


@pytest.mark.parametrize("section", [AST, STATISTICS, TEXTURES], ids=["ast", "frame_statistics", "frame_textures"])
def test_prediction_needs_the_model_folder_and_frames_alone(tmp_path: Path, section: dict[str, Any]) -> None:
    paths = make_artifacts(tmp_path / "a")
    card = run_train(paths, section)
    predictions = open_predictions(run_evaluate(paths))
    assert predictions.list("clip_id") == ["clip3", "clip5"]
    assert set(predictions.list("role")) == {"test"}
    assert matrix(predictions, "targets").tolist() == [[0, 1], [0, 1]]
    assert predictions.metadata["weights"] == card["weights"]


def test_a_model_refuses_frames_of_another_front_end(tmp_path: Path) -> None:
    paths = make_artifacts(tmp_path / "a")
    run_train(paths, STATISTICS)
    other = make_artifacts(tmp_path / "b", n_mels=6)
    with pytest.raises(ArtifactError, match="front end n_mels: expected 8, found 6"):
        run_evaluate(paths, other.source)


def test_a_fold_without_training_clips_is_refused(tmp_path: Path) -> None:
    paths = make_artifacts(tmp_path / "a")
    roles = {"clip_id": [f"clip{i}" for i in range(6)], "role": ["test"] * 6}
    SPLIT.write(paths.split, roles, {"fold": "1", "seed": 0, "rule": "by hand"})
    with pytest.raises(CorpusError, match="expected training clips of fold 1 with frames, found none"):
        run_train(paths, STATISTICS)


def test_a_model_keeps_the_digest_of_its_pretrained_weights_and_predicts_without_them(tmp_path: Path) -> None:
    weights = tmp_path / "published.pth"
    make_original(weights)
    pretrained = original_weights(weights, digest=file_digest(weights))
    paths = make_artifacts(tmp_path / "a", n_mels=128)
    section = changed(
        SMALL, {"pretrained": pretrained, "input.normalisation": "pretrained", "stem.positions.frames": 32}
    )
    card = run_train(paths, section)
    assert card["input"]["pretrained"]["digest"] == file_digest(weights)
    assert card["input"]["normalisation"] == {"kind": "pretrained", "std_scale": 2.0, "mean": MEAN, "std": STD}
    assert card["params"]["pretrained"] == pretrained
    fresh = make_artifacts(tmp_path / "b", n_mels=128)
    other = run_train(fresh, changed(section, {"pretrained": None, "input.normalisation": "corpus"}))
    assert "pretrained" not in other["input"]
    weights.unlink()
    model = open_model(paths.model)
    inputs = open_inputs_of(model, paths.source)
    (steps, later) = predict_time_steps(model, inputs, ["clip0", "clip5"])
    assert steps.logits.shape == (2, 2)  # 30 frames: patches of 16 at 0 and 10
    np.testing.assert_allclose(steps.seconds, [0.08, 0.18])
    alone = predict_time_steps(model, inputs, ["clip0"])[0]
    np.testing.assert_allclose(steps.logits, alone.logits, atol=1e-5)
    assert len(later.logits) == 2  # 35 frames, of which the model reads 32
    assert matrix(open_predictions(run_evaluate(paths)), "logits").shape == (2, 2)


def test_pretrained_weights_whose_file_has_changed_stop_before_training(tmp_path: Path) -> None:
    make_original(tmp_path / "x.pth")
    section = SMALL | {"pretrained": original_weights(tmp_path / "x.pth", digest="0" * 32)}
    with pytest.raises(SonolexError, match=r"pretrained\.digest: .*expected 0{32}, found"):
        run_train(make_artifacts(tmp_path / "a", n_mels=128), section)


@pytest.mark.parametrize(
    ("section", "found"),
    [
        (STATISTICS, "found the kind frame_statistics;"),
        (PSLA, "input frames, stem identity, encoder timm, head attention;"),
        (
            network("frames", "fixed_length", "identity", "flatten"),
            "encoder identity, head flatten; take a network with",
        ),
    ],
    ids=["statistics", "psla", "mlp"],
)
def test_a_model_without_time_steps_is_refused(tmp_path: Path, section: dict[str, Any], found: str) -> None:
    paths = make_artifacts(tmp_path / "a", n_mels=32)
    run_train(paths, section)
    model = open_model(paths.model)
    with pytest.raises(SonolexError, match=f"1/0: expected a model that classifies time steps, .*{found}"):
        predict_time_steps(model, open_inputs_of(model, paths.source), ["clip0"])


def test_clips_longer_than_the_table_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run_train(make_artifacts(tmp_path / "a", n_mels=32), changed(SMALL, {"stem.positions.frames": 31}))
    assert (
        "2 of 4 clips have more than 31 frames: the model reads the first ones; stem.positions.frames sets"
        in caplog.text
    )


def test_clips_of_a_fixed_length_are_cut_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    section = network("frames", "fixed_length", "identity", "flatten", stem__frames=31)
    paths = make_artifacts(tmp_path / "a")
    run_train(paths, section)
    assert "2 of 4 clips have more than 31 frames: the model reads the first ones; stem.frames sets" in caplog.text
    assert matrix(open_predictions(run_evaluate(paths)), "logits").shape == (2, 2)
    assert open_model(paths.model).metadata["input"]["log_floor"] == pytest.approx(-15.94, abs=0.01)


def test_a_convolutional_network_and_an_lstm_have_time_steps(tmp_path: Path) -> None:
    stack = {"channels": [4], "strides": [[4, 2]], "kernel": 3}
    cnn = network("frames", "identity", "cnn") | {"encoder": stack | {"kind": "cnn"}}
    lstm = network("frames", "linear", "lstm", "last") | {"stem": stack | {"kind": "convolution"}}
    for name, section in (("cnn", cnn), ("lstm", lstm)):
        paths = make_artifacts(tmp_path / name)
        run_train(paths, section)
        model = open_model(paths.model)
        short, longer = predict_time_steps(model, open_inputs_of(model, paths.source), ["clip0", "clip5"])
        alone = predict_time_steps(model, open_inputs_of(model, paths.source), ["clip0"])[0]
        assert (short.logits.shape, longer.logits.shape) == ((8, 2), (9, 2))  # 30 and 35 frames, every fourth
        np.testing.assert_allclose(short.seconds[:2], [0.005, 0.045])
        np.testing.assert_allclose(short.logits, alone.logits, atol=1e-5)


def test_gradients_lie_beside_the_curves_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = neural.load_params(TrainParams, "train")
    assert not settings.gradient_flow  # off by default
    run_train(make_artifacts(tmp_path / "without"), AST)
    assert not list((tmp_path / "without/curves").glob("gradients.*"))
    monkeypatch.setattr(
        neural, "load_params", lambda kind, section: settings.model_copy(update={"gradient_flow": True})
    )
    run_train(make_artifacts(tmp_path / "with"), AST)
    assert {path.name for path in (tmp_path / "with/curves").glob("gradients.*")} == {"gradients.csv", "gradients.png"}
    digests = {file_digest(tmp_path / name / "m/1/0/weights.safetensors") for name in ("without", "with")}
    assert len(digests) == 1
