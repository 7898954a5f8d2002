"""Variants of runs that keep epochs: their logits, against each checkpoint by hand, and their rows in all tables."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file
from test_reporting import EXPERIMENT, FOLDS, PARAMS, SEEDS, report, write_experiment
from test_stages_train import AST, STATISTICS, make_artifacts, run_evaluate, run_train
from test_thresholds import EXPERIMENT as MANY
from test_thresholds import GLOBAL
from test_thresholds import write_predictions as write_many

from pipeline.artifacts.clips import link_of
from pipeline.artifacts.layout import VARIANTS, Layout
from pipeline.artifacts.model import open_model
from pipeline.artifacts.predictions import PREDICTIONS, logits_column, matrix, open_predictions, write_predictions
from pipeline.artifacts.thresholds import open_thresholds
from pipeline.errors import ArtifactError
from pipeline.evaluation.ensemble import score_clips
from pipeline.evaluation.experiment_predictions import open_decided_predictions
from pipeline.evaluation.metric_functions import to_scores
from pipeline.evaluation.metrics import evaluate_clips
from pipeline.evaluation.network_prediction import build_network
from pipeline.evaluation.variants import mean_of_weights
from pipeline.reporting.summary import read_summary
from pipeline.training import neural
from pipeline.training.batches import Batches
from pipeline.training.inputs import open_inputs_of
from pipeline.training.logits import predict_logits
from pipeline.training.settings import TrainParams
from stages import thresholds
from tools import leaderboard

VARIANT_NAMES = ["ast (stored weights)", "ast (mean of weights)"]


@pytest.mark.parametrize("label_kind", ["one", "many"])
def test_three_kept_epochs_give_three_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label_kind: str
) -> None:
    changes = {"epochs": 4, "learning_rate": 0.1, "average": {"kind": "none"}, "checkpoint_ensemble": [1, 2, 3]}
    settings = TrainParams.model_validate(neural.load_params(TrainParams, "train").model_dump() | changes)
    monkeypatch.setattr(neural, "load_params", lambda kind, section: settings)
    paths = make_artifacts(tmp_path / "a", label_kind=label_kind)
    run_train(paths, AST)
    model = open_model(paths.model)
    batches = Batches(open_inputs_of(model, paths.source), ["clip3", "clip5"], model.metadata["input"]["normalisation"])

    def predicted(weights: dict[str, np.ndarray]) -> np.ndarray:
        return predict_logits(build_network(replace(model, weights=weights)), batches, 2).numpy()

    epochs = [load_file(paths.model / f"epochs/{epoch}.safetensors") for epoch in (1, 2, 3)]
    stored = load_file(paths.model / "weights.safetensors")
    mean = {name: np.mean([epoch[name] for epoch in epochs], axis=0, dtype=np.float64) for name in stored}
    table = open_predictions(run_evaluate(paths))
    link = link_of(table.metadata)
    found = {name: matrix(table, logits_column(name)) for name in ("", *VARIANTS)}
    np.testing.assert_allclose(found["stored_weights"], predicted(stored), atol=1e-6)
    by_mean = predicted({name: np.asarray(array, np.float32) for name, array in mean.items()})
    np.testing.assert_allclose(found["mean_of_weights"], by_mean, atol=1e-6)
    scores = np.mean([to_scores(predicted(weights), link) for weights in epochs], axis=0)
    np.testing.assert_allclose(to_scores(found[""], link), scores, atol=1e-6)
    values = [to_scores(logits, link) for logits in found.values()]
    assert min(np.abs(values[a] - values[b]).max() for a, b in ((0, 1), (0, 2), (1, 2))) > 1e-3  # unlike each other

    variants = [table.metadata["variants"][name] for name in VARIANTS]
    assert [3 * own["num_parameters"] for own in variants] == 2 * [table.metadata["num_parameters"]]
    digests = [own["weights"] for own in variants]
    assert digests[0] == model.metadata["weights"]
    assert len({*digests, table.metadata["weights"]}) == 3


def test_runs_that_keep_no_epochs_have_no_variants(tmp_path: Path) -> None:
    paths = make_artifacts(tmp_path / "a")
    for section in (AST, STATISTICS):
        run_train(paths, section)
        table = open_predictions(run_evaluate(paths))
        assert table.columns.column_names == list(PREDICTIONS.columns)
        assert "variants" not in table.metadata


def test_running_statistics_are_averaged_like_weights_and_counters_are_the_last() -> None:
    members = [
        {"w": np.float32([1, 2]), "running_var": np.float32([4.0]), "num_batches_tracked": np.array(10)},
        {"w": np.float32([2, 6]), "running_var": np.float32([1.0]), "num_batches_tracked": np.array(20)},
    ]
    mean = mean_of_weights(iter(members))
    assert {name: array.tolist() for name, array in mean.items()} == {
        "w": [1.5, 4.0],
        "running_var": [2.5],
        "num_batches_tracked": 20,
    }
    assert {array.dtype for name, array in mean.items() if name != "num_batches_tracked"} == {np.dtype(np.float32)}
    assert members[0]["w"].tolist() == [1, 2]  # the members stay as they are


def add_variants(path: Path, generator: np.random.Generator) -> None:
    """Give stored predictions both variants, with logits of their own."""
    table = open_predictions(path)
    columns = {name: table.list(name) for name in PREDICTIONS.columns}
    for name in VARIANTS:
        noise = generator.normal(scale=3, size=matrix(table, "logits").shape)
        columns[logits_column(name)] = (matrix(table, "logits") + noise).astype(np.float32).tolist()
    variants = {name: {"num_parameters": 617, "weights": f"{name} of {path.stem}"} for name in VARIANTS}
    write_predictions(path, columns, table.metadata | {"variants": variants})  # type: ignore[typeddict-item]


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a reported experiment whose model `ast` keeps epochs."""
    root, generator = tmp_path_factory.mktemp("variants"), np.random.default_rng(0)
    write_experiment(root, audio=False)
    for run in EXPERIMENT.runs():
        if run.model.entry == "ast":
            add_variants(Layout(root).prediction(run), generator)
    report(root)
    return root


def test_every_table_has_the_variants_behind_their_model(reported: Path) -> None:
    runs = read_summary(reported / "results/summary.csv")
    models = list(dict.fromkeys(run.model for run in runs))
    assert models[:3] == ["ast", *VARIANT_NAMES]
    assert [model for model in models if "(" in model] == VARIANT_NAMES  # others keep no epochs
    own = [run for run in runs if run.model == VARIANT_NAMES[1]]
    assert [(run.fold, run.seed) for run in own] == [(fold, str(seed)) for fold in FOLDS for seed in SEEDS]
    assert {run.num_parameters for run in own} == {617}
    table = open_predictions(Layout(reported).prediction(EXPERIMENT.runs()[0]))
    logits = table.columns["logits_mean_of_weights"]
    changed = table.columns.set_column(2, "logits", logits)
    expected = evaluate_clips(score_clips(replace(table, columns=changed), "test")).values
    assert own[0].values["mAP"] == pytest.approx(expected["mAP"], abs=1e-6)

    metrics = json.loads((reported / "results/metrics.json").read_text())
    assert PARAMS.headline[0] == "ast"
    assert list(metrics)[:3] == ["ast", *VARIANT_NAMES]
    assert list(metrics[VARIANT_NAMES[0]]) == ["accuracy", "mAP"]
    page = (reported / "report/index.html").read_text()
    assert "ast (mean of<wbr>" not in page
    assert page.count("ast (mean of weights)") >= 3  # results, all metrics, folds
    assert "ast: the mean of the probabilities of the kept epochs; rows with brackets" in page
    assert not list((reported / "results/plots").glob("*/*(*"))  # charts are of the models themselves


def test_variants_are_on_the_leaderboard(reported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leaderboard.run(Layout(reported), EXPERIMENT, Console(width=40), markdown=True)
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in capsys.readouterr().out.splitlines()}
    assert {"ast", *VARIANT_NAMES} < set(lines)
    assert "| 617 |" in lines[VARIANT_NAMES[0]]


def test_a_run_without_the_variants_of_others_is_refused(reported: Path, tmp_path: Path) -> None:
    write_experiment(tmp_path, audio=False)
    first = Layout(tmp_path).prediction(EXPERIMENT.runs()[0])
    add_variants(first, np.random.default_rng(0))
    with pytest.raises(
        ArtifactError, match=r"metadata variants: expected \['stored_weights', .*1/0\.parquet, found \[\]"
    ):
        open_decided_predictions(EXPERIMENT, Layout(tmp_path))


def test_each_variant_has_thresholds_of_its_own(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    write_many(tmp_path, "1", {"validation": 200, "test": 200})
    generator = np.random.default_rng(0)
    for run in MANY.runs():
        if run.model.entry == "ast":
            add_variants(layout.prediction(run), generator)
    thresholds.run(GLOBAL, MANY, layout)
    found = open_thresholds(layout.thresholds)
    values = [float(found.by_fold(model)["1"][0]) for model in ("ast", *VARIANT_NAMES)]
    assert len(set(values)) == 3
    predictions = open_decided_predictions(MANY, layout)
    clips = predictions.scored(VARIANT_NAMES[1], "1", "0")
    weights = [f"mean_of_weights of {layout.prediction(MANY.runs()[0]).stem}"]
    np.testing.assert_array_equal(clips.thresholds, found.of(VARIANT_NAMES[1], "1", "0", weights))
