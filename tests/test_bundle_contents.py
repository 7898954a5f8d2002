"""Contents of bundles: everything that they state follows from artifacts, the same inputs give the same bytes."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from experiments import run_experiment
from huggingface_hub import ModelCard
from rich.console import Console
from typer.testing import CliRunner

import sonolex
from pipeline.artifacts.files import file_digest
from pipeline.artifacts.layout import Layout, RunId
from pipeline.artifacts.settings import without_folders
from pipeline.artifacts.tables import metadata_digest
from pipeline.artifacts.thresholds import THRESHOLDS
from pipeline.errors import ArtifactError, ParamsError, SonolexError
from pipeline.grid import ExperimentParams
from pipeline.inference.bundle import BundleCard, open_bundle
from pipeline.inference.prediction import Prediction
from pipeline.inference.records import to_record
from pipeline.params import load_params
from pipeline.reporting.measuring import open_experiment
from pipeline.reporting.model_card import _licence
from tools import bundle
from tools.provenance import training_releases
from tools.sonolex import app

FOLDS = (
    "experiment.frame_models=[majority, frame_statistics]",
    "experiment.token_models=[bag_of_tokens]",
    "experiment.vocabularies=[kmeans]",
    "experiment.ensembles=[{name: both, models: [frame_statistics, bag_of_tokens-kmeans]}, "
    "{name: uneven, models: [majority, frame_statistics]}]",
    'experiment.folds=["1", "2"]',
)


def make_bundle(experiment: Path, name: str, out: Path, *folds: str, retrain: bool = False, licence: str = "") -> Path:
    bundle.run(
        name,
        out,
        folds=folds,
        retrain=retrain,
        licence=licence,
        params_path=experiment / "params.yaml",
        layout=Layout(experiment),
        console=Console(quiet=True),
    )
    return out


def card_of(path: Path) -> BundleCard:
    return open_bundle(path).card


def files_of(path: Path) -> dict[str, str]:
    return {file.relative_to(path).as_posix(): file_digest(file) for file in sorted(path.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_experiment(tmp_path_factory.mktemp("contents") / "experiment", FOLDS)


@pytest.fixture(scope="module")
def several_labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an experiment in which clips may have several labels, with thresholds of each class."""
    folder = tmp_path_factory.mktemp("several") / "experiment"
    settings = (
        "corpus.kind=table",
        f"corpus.root={folder}/corpus/audio",
        f"corpus.table={folder}/corpus/meta/esc50.csv",
        "corpus.path_column=filename",
        "corpus.labels_column=category",
        "corpus.label_kind=many",
        "corpus.fold_column=fold",
        "split.validation_fraction=0.4",
        "thresholds.kind=per_class",
        "thresholds.min_positives=1",
    )
    return run_experiment(folder, (*FOLDS, *settings))


@pytest.mark.parametrize(("name", "folds"), [("frame_statistics", ["1"]), ("both", ["1", "2"])])
def test_a_bundle_decides_by_the_thresholds_of_its_folds(
    several_labels: Path, tmp_path: Path, name: str, folds: list[str]
) -> None:
    params = load_params(ExperimentParams, "experiment", several_labels / "params.yaml")
    report = open_experiment(params, params.models, Layout(several_labels))
    expected = np.mean([report.scored(name, fold).thresholds for fold in folds], axis=0)
    opened = open_bundle(make_bundle(several_labels, name, tmp_path / "out", *folds))
    np.testing.assert_allclose(opened.classifier.thresholds, expected)
    assert (opened.classifier.thresholds != 0.5).all()
    runs = {run.fold: run for run in report.runs if run.model == name}
    for fold in opened.card["metrics"]:
        assert fold["values"]["macro_f1"] == pytest.approx(runs[fold["fold"]].values["macro_f1"], abs=1e-6)
    assert "A class is decided for at a probability of those in bundle.json, one a class" in (
        (tmp_path / "out" / "README.md").read_text()
    )
    file = next((several_labels / "corpus/audio").glob("*.wav"))
    prediction = sonolex.load(tmp_path / "out").predict(file)
    assert isinstance(prediction, Prediction)
    above = prediction.scores >= expected
    assert prediction.labels == [label for label, is_above in zip(prediction.classes, above, strict=True) if is_above]
    record = to_record(prediction, None)
    assert record["decisions"] == dict(zip(prediction.classes, above.astype(int).tolist(), strict=True))
    assert record["scores"] == dict(zip(prediction.classes, prediction.scores.tolist(), strict=True))


def test_thresholds_of_other_classes_are_refused(several_labels: Path, tmp_path: Path) -> None:
    layout = Layout(several_labels)
    card_path = make_bundle(several_labels, "majority", tmp_path / "out") / "bundle.json"
    card = json.loads(card_path.read_text())
    for key, value, message in (
        ("thresholds", [0.5], r"thresholds: expected a number from 0 to 1 for each of 3 classes, found 1: \[0\.5\]"),
        (
            "classes",
            ["a", "b", "c"],
            r"classes: expected the 3 classes of its models, found others; .*`sonolex bundle`",
        ),
    ):
        changed = {name: own for name, own in card.items() if name != "digest"} | {key: value}
        card_path.write_text(json.dumps(changed | {"digest": metadata_digest(changed)}))
        with pytest.raises(SonolexError, match=message):
            open_bundle(card_path.parent)
    table = THRESHOLDS.open(layout.thresholds)
    try:
        THRESHOLDS.write(layout.thresholds, table.columns, {**table.metadata, "classes": ["a", "b", "c"]})
        with pytest.raises(
            ArtifactError, match=r"metadata classes: expected the 3 classes .*majority/1/0, found 3 others"
        ):
            make_bundle(several_labels, "majority", tmp_path / "other")
    finally:
        THRESHOLDS.write(layout.thresholds, table.columns, table.metadata)


@pytest.mark.parametrize("name", ["frame_statistics", "uneven"])
def test_metrics_are_those_of_the_report(experiment: Path, tmp_path: Path, name: str) -> None:
    params = load_params(ExperimentParams, "experiment", experiment / "params.yaml")
    report = open_experiment(params, params.models, Layout(experiment))
    card = card_of(make_bundle(experiment, name, tmp_path / "out", "all"))
    runs = [run for run in report.runs if run.model == name]
    assert [fold["fold"] for fold in card["metrics"]] == [run.fold for run in runs] == ["1", "2"]
    for fold, run in zip(card["metrics"], runs, strict=True):
        assert fold["num_clips"] == run.num_clips == 6
        assert fold["values"]["accuracy"] == pytest.approx(run.values["accuracy"], abs=1e-6)
        assert fold["values"]["mAP"] == pytest.approx(run.values["mAP"], abs=1e-6)
        assert fold["intervals"]["accuracy"] == pytest.approx(list(run.intervals["accuracy"]), abs=1e-6)


def test_the_same_inputs_give_the_same_bytes(experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_bundle(experiment, "both", tmp_path / "first", "all")
    moved = Path(shutil.copytree(experiment, tmp_path / "elsewhere"))
    monkeypatch.chdir(moved)
    result = CliRunner().invoke(app, ["bundle", "both", "--folds", "all", "--out", "../second"])
    assert result.exit_code == 0, result.output
    assert files_of(first) == files_of(tmp_path / "second")
    for file in first.rglob("*"):
        assert not file.is_file() or str(experiment.parent).encode() not in file.read_bytes(), file


def test_a_card_states_the_data_the_params_and_the_members(experiment: Path, tmp_path: Path) -> None:
    card = card_of(make_bundle(experiment, "both", tmp_path / "out", "2"))
    assert [(member["model"], member["folds"], member["seed"]) for member in card["members"]] == [
        ("frame_statistics", ["2"], 0),
        ("bag_of_tokens-kmeans", ["2"], 0),
    ]
    about = card["trained_on"]
    assert (about["corpus"], about["clips"], about["shortest"]) == ("esc50", 6, 0.48)
    assert about["seconds"] == pytest.approx(6 * 0.48)
    assert "ESC-50 is CC BY-NC 3.0" in about["licence"]
    assert {"corpus", "spectrogram", "split", "vocabularies", "models", "train"} <= card["params"].keys()
    models, vocabularies = card["params"]["models"], card["params"]["vocabularies"]
    assert isinstance(models, dict)
    assert models.keys() == {"frame_statistics", "bag_of_tokens"}
    assert isinstance(vocabularies, dict)
    assert vocabularies["kmeans"]["num_tokens"] == 8
    assert {"sonolex", "torch", "numpy", "soxr"} <= card["releases"].keys()


def test_the_readme_is_a_model_card_of_the_hub(experiment: Path, tmp_path: Path) -> None:
    out = make_bundle(experiment, "frame_statistics", tmp_path / "out", "1", licence="CC-BY-4.0")
    card, measured = ModelCard((out / "README.md").read_text()), card_of(out)["metrics"][0]
    data = card.data.to_dict()
    assert (data["license"], data["pipeline_tag"]) == ("cc-by-4.0", "audio-classification")
    assert "frame_statistics" in data["tags"]
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results["accuracy"] == pytest.approx(measured["values"]["accuracy"], abs=1e-4)
    low, high = (f"{100 * limit:.1f}" for limit in measured["intervals"]["accuracy"])
    for text in (
        "`tone`, `noise`, `clicks`",
        "6 test clips of fold 1",
        f"[{low}, {high}] %",
        "6 clips of 0.5 s",
        "In brackets the 95 % interval",
        "`kaldi`",
    ):
        assert text in card.text


def test_the_python_of_a_model_card_runs(experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = make_bundle(experiment, "frame_statistics", tmp_path / "frame_statistics")
    shutil.copy(next((experiment / "corpus").rglob("*.wav")), tmp_path / "recording.wav")
    code = (out / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    printed: list[object] = []
    exec(code, {"print": printed.append})
    assert len(printed[0]) == 3  # type: ignore[arg-type]


def test_the_python_of_the_readme_runs(experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    make_bundle(experiment, "frame_statistics", tmp_path / "ast-esc10")
    shutil.copy(next((experiment / "corpus").rglob("*.wav")), tmp_path / "dog.wav")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"print": lambda _top: None}
    exec(code, names)
    assert isinstance(names["prediction"], Prediction)


def test_the_mean_of_all_folds_has_no_score_of_its_own(experiment: Path, tmp_path: Path) -> None:
    out = make_bundle(experiment, "frame_statistics", tmp_path / "out", "all")
    card = ModelCard((out / "README.md").read_text())
    assert card.data.eval_results is None
    for text in (
        "12 test clips of 2 folds",
        "has no unseen clip",
        "| 1 | 6 |",
        "| 2 | 6 |",
        "Mean ± standard deviation between folds",
    ):
        assert text in card.text


def test_retraining_uses_all_clips_and_changes_nothing(experiment: Path, tmp_path: Path) -> None:
    before = files_of(experiment)
    out = make_bundle(experiment, "both", tmp_path / "out", retrain=True)
    assert {name for name, digest in files_of(experiment).items() if before.get(name) != digest} <= {
        name for name in files_of(experiment) if name.startswith(".sonolex/")
    }
    assert not (experiment / ".dvc").exists()
    card = card_of(out)
    assert (card["origin"], card["trained_on"]["clips"], card["metrics"]) == ("retrained", 12, [])
    assert [(member["model"], member["folds"]) for member in card["members"]] == [
        ("frame_statistics", ["all"]),
        ("bag_of_tokens-kmeans", ["all"]),
    ]
    assert "no test score of its own" in (out / "README.md").read_text()
    clip = next((experiment / "corpus").rglob("*.wav"))
    assert sonolex.load(out).predict(clip).top(1)[0].name in card["classes"]


def test_retraining_needs_no_validation_clips(experiment: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(experiment, tmp_path / "copy"))
    text = (copy / "params.yaml").read_text()
    (copy / "params.yaml").write_text(text.replace("early_stop_patience: 0", "early_stop_patience: 3"))
    with pytest.raises(ParamsError, match=r"early_stop_patience: expected 0, .* found 3; set it to 0"):
        make_bundle(copy, "frame_statistics", tmp_path / "out", retrain=True)


def test_predictions_of_another_model_are_no_metrics(experiment: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(experiment, tmp_path / "copy"))
    layout, run = Layout(copy), RunId.of("frame_statistics", "1", 0)
    shutil.copy(layout.prediction(RunId.of("frame_statistics", "2", 0)), layout.prediction(run))
    with pytest.raises(ArtifactError, match=r"predictions/frame_statistics/1/0.*weights: expected .*rerun it with"):
        make_bundle(copy, "frame_statistics", tmp_path / "out", "1")
    layout.prediction(run).unlink()
    with pytest.raises(ArtifactError, match=r"predictions/frame_statistics/1/0.*rerun it with"):
        make_bundle(copy, "frame_statistics", tmp_path / "out", "1")


def test_a_bundle_of_other_params_than_now_says_what_it_was_made_with(experiment: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(experiment, tmp_path / "copy"))
    text = (copy / "params.yaml").read_text()
    (copy / "params.yaml").write_text(text.replace("num_tokens: 8", "num_tokens: 9"))
    card = card_of(make_bundle(copy, "bag_of_tokens-kmeans", tmp_path / "out", "1"))
    vocabularies = card["params"]["vocabularies"]
    assert isinstance(vocabularies, dict)
    assert vocabularies["kmeans"]["num_tokens"] == 8


def test_absolute_paths_leave_only_their_names() -> None:
    found = without_folders({"a": ["/home/me/x.pth", "~/y", "MIT/ast", 1, None], "b": {"c": "/z"}})
    assert found == {"a": ["x.pth", "y", "MIT/ast", 1, None], "b": {"c": "z"}}


def test_the_releases_of_training_are_those_that_dvc_recorded(tmp_path: Path) -> None:
    layout, run = Layout(tmp_path), RunId.of("ast", "1", 0)
    code = layout.code / "train/ast"
    code.parent.mkdir(parents=True)
    code.write_text(json.dumps({"code": "1", "packages": {"torch": "2.11.0"}}))
    assert training_releases(layout, run) == {}
    digest = hashlib.md5(code.read_bytes(), usedforsecurity=False).hexdigest()
    dep = "{{path: code/train/ast, hash: md5, md5: '{}'}}"
    lock = f"schema: '2.0'\nstages:\n  train_frames@ast-1-0:\n    deps: [{dep}]\n"
    (tmp_path / "dvc.lock").write_text(lock.format(digest))
    assert training_releases(layout, run) == {"torch": "2.11.0"}
    assert training_releases(layout, RunId.of("ast", "2", 0)) == {}
    (tmp_path / "dvc.lock").write_text(lock.format("0" * 32))
    assert training_releases(layout, run) == {}


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ("", {"license": "unknown"}),
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("for my students", {"license": "other", "license_name": "for my students"}),
    ],
)
def test_licences_have_the_names_of_the_hub(stated: str, expected: dict[str, str]) -> None:
    assert _licence(stated) == expected


def test_a_licence_of_the_weights_is_not_that_of_the_corpus(experiment: Path, tmp_path: Path) -> None:
    out = make_bundle(experiment, "frame_statistics", tmp_path / "out", licence="for my students")
    assert card_of(out)["licence"] == "for my students"
    assert "Licence of the weights: for my students" in (out / "README.md").read_text()


@pytest.mark.slow
def test_retraining_runs_pretraining_too_and_repeats(tmp_path: Path) -> None:
    settings = (
        "experiment.frame_models=[]",
        "experiment.token_models=[bag_of_tokens]",
        "experiment.pretrained_models=[token_transformer]",
        "experiment.vocabularies=[kmeans]",
    )
    experiment = run_experiment(tmp_path / "experiment", settings)
    name = "token_transformer-kmeans-pretrained"
    outs = [make_bundle(experiment, name, tmp_path / out, retrain=True) for out in ("one", "two")]
    assert files_of(outs[0]) == files_of(outs[1])
    (member,) = open_bundle(outs[0]).classifier.members
    assert member.model.metadata["fold"] == "all"
    assert member.model.metadata["input"]["masked_pretraining"]
