"""The whole graph under DVC, on a small demo corpus in a repository of its own: what runs, and what reruns."""

import csv
import json
import re
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import networkx
import pytest
from dvc.repo import Repo
from workspace import FOLDS, ROOT, SMALL, change_params, finish, make_workspace, run, stages_run, stale

from pipeline import stage_code
from pipeline.artifacts.clips import open_clips
from pipeline.artifacts.layout import Layout
from pipeline.artifacts.splits import SPLIT
from pipeline.check_params import load_experiment
from pipeline.errors import ParamsError
from pipeline.execution.code import Definition, Reach, Sources
from pipeline.params import read_params
from stages.code import make_folders


@pytest.fixture
def changed(finished: Path) -> Iterator[Path]:
    """Return the finished workspace, to change params in; they are put back afterwards."""
    before = (finished / "params.yaml").read_text()
    yield finished
    (finished / "params.yaml").write_text(before)


def write_code(folder: Path) -> None:
    """Write what the stage `code` writes for the params of a folder, but for digests of code, which take seconds.

    They follow from the kinds alone here; test_stage_code.py has what they follow from.
    """

    def reach(sources: Sources, roots: Iterable[Definition], kinds: Collection[str]) -> Reach:
        return Reach(dict.fromkeys(roots, " ".join(sorted(kinds))), {})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage_code, "reach", reach)
        files = stage_code.stage_files(read_params(folder / "params.yaml"), Sources(folder))
    for name, content in files.items():
        path = folder / "code" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the small experiment as DVC knows it after a run, with placeholders for all that stages write."""
    folder = tmp_path_factory.mktemp("recorded")
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text("[core]\n    analytics = false\n    no_scm = true\n")
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, folder)
    change_params(folder, SMALL)
    write_code(folder)
    experiment = read_params(folder / "params.yaml")["experiment"]
    make_folders(Layout(folder), experiment["vocabularies"], experiment["folds"])
    with chdir(folder), Repo() as repo:
        outs = {Path(out.fs_path) for out in repo.index.outs}
        deps = {Path(dep.fs_path) for stage in repo.index.stages for dep in stage.deps}
        inside = {dep for dep in deps if outs & set(dep.parents)}  # files in folders that are outs
        for path in sorted(outs | inside, reverse=True):  # a folder after what is in it
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.write_text(str(path.relative_to(folder)))
        repo.commit(force=True)
    return folder


@pytest.fixture
def tried(recorded: Path) -> Iterator[Path]:
    """Return the recorded experiment, to change params in; they are put back afterwards."""
    before = (recorded / "params.yaml").read_text()
    yield recorded
    (recorded / "params.yaml").write_text(before)
    shutil.rmtree(recorded / "code")
    write_code(recorded)


def reruns(folder: Path, changes: dict[str, Any]) -> set[str]:
    """Return the stages that a change of params makes stale, and those downstream of them."""
    change_params(folder, changes)
    write_code(folder)  # as `dvc repro` does before all else
    with chdir(folder), Repo() as repo:
        reasons = {name: why for name, why in repo.status().items() if why != ["always changed"] and name != "code"}
        graph = repo.index.graph  # edges run from a stage to what it depends on
        stages = {stage.addressing: stage for stage in graph}
        below = {stage.addressing for name in reasons for stage in networkx.ancestors(graph, stages[name])}
    return reasons.keys() | below


def stage_names(folder: Path) -> set[str]:
    with chdir(folder), Repo() as repo:
        return {stage.addressing for stage in repo.index.stages}


def items(stage: str, *models: str) -> set[str]:
    return {f"{stage}@{model}-{fold}-0" for model in models for fold in FOLDS}


@pytest.mark.slow
def test_the_graph_runs_and_is_finished(finished: Path) -> None:
    assert stale(finished) == set()
    metrics = json.loads((finished / "results/metrics.json").read_text())
    scalars = [value for model in metrics.values() for value in model.values()]
    assert 4 <= len(scalars) <= 12
    assert all(isinstance(value, int | float) for value in scalars)
    assert (finished / "report/index.html").exists()
    assert (finished / "report/atlas.html").exists()
    assert (finished / "report/atlas/kmeans.html").exists()
    assert not list(finished.rglob("*.partial"))


def test_without_a_change_nothing_reruns(tried: Path) -> None:
    assert reruns(tried, {}) == set()


@pytest.mark.slow
def test_a_second_run_does_nothing(finished: Path) -> None:
    output = run(finished, "dvc", "repro").stdout
    assert stages_run(output) == ["code", "corpus"]  # which compare
    assert stale(finished) == set()


def test_a_models_depth_reruns_that_model_alone(tried: Path) -> None:
    expected = items("train_frames", "ast") | items("evaluate_frames", "ast")
    expected |= {"thresholds", "attention@ast", "report"}
    assert reruns(tried, {"models.ast.encoder.depth": 2}) == expected


def test_a_vocabulary_size_leaves_spectrograms_and_patches_alone(tried: Path) -> None:
    tokens = {f"{stage}@kmeans-{fold}" for stage in ("vocabulary", "tokenize", "ngram_perplexity") for fold in FOLDS}
    models = ("token_transformer-kmeans", "bag_of_tokens-kmeans")
    expected = tokens | items("train_tokens", *models) | items("evaluate_tokens", *models)
    expected |= {
        "thresholds",
        "report",
        "atlas@kmeans",
        "attention@ast",
    }  # which clips the report shows follows from all predictions
    assert reruns(tried, {"vocabularies.kmeans.num_tokens": 20}) == expected


def test_thresholds_rerun_nothing_that_trains_or_predicts(tried: Path) -> None:
    assert reruns(tried, {"thresholds.value": 0.4}) == {"thresholds", "attention@ast", "report"}


def test_what_the_atlas_plays_reruns_it_alone(tried: Path) -> None:
    assert reruns(tried, {"atlas.snippets": 2}) == {"atlas@kmeans"}


def test_a_hop_length_reruns_what_follows(tried: Path) -> None:
    everything = reruns(tried, {"spectrogram.front_end.hop_length": 200})
    assert {"spectrogram", "report"} | {f"vocabulary@kmeans-{fold}" for fold in FOLDS} <= everything
    assert items("train_frames", "ast", "frame_statistics") <= everything
    assert items("train_tokens", "token_transformer-kmeans", "bag_of_tokens-kmeans") <= everything
    assert {"duplicates", *(f"split@{fold}" for fold in FOLDS)} <= everything
    assert "corpus" not in everything


def test_where_the_corpus_lies_and_how_many_workers_rerun_nothing(tried: Path) -> None:
    assert reruns(tried, {"execution.workers": 1}) == set()


def test_label_enhancement_is_no_stage_until_it_is_asked_for(tried: Path) -> None:
    assert not [name for name in stage_names(tried) if name.startswith("enhance")]
    change_params(tried, {"labels.enhance": FOLDS})
    assert f"enhance@{FOLDS[0]}" in stage_names(tried)
    expected = "labels.enhance: expected in experiment.folds all inner folds of fold 1, 1-1, 1-2"
    with pytest.raises(ParamsError, match=re.escape(expected)):
        load_experiment(tried / "params.yaml")


def test_pretraining_is_no_stage_until_it_is_asked_for(tried: Path) -> None:
    assert not [name for name in stage_names(tried) if "pretrain" in name]
    stages = ("pretrain", "perplexity", "train_pretrained", "evaluate_pretrained")
    expected = set().union(*(items(stage, "token_transformer-kmeans") for stage in stages)) | {
        "thresholds",
        "attention@ast",
        "report",
    }
    assert reruns(tried, {"experiment.pretrained_models": ["token_transformer"]}) == expected


@pytest.mark.slow
def test_a_pretrained_model_runs_through_the_graph(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "workspace")
    name = "token_transformer-kmeans-pretrained"
    lists = {"frame_models": [], "token_models": [], "pretrained_models": ["token_transformer"]}
    changes: dict[str, Any] = {f"experiment.{key}": value for key, value in lists.items()} | {"report.attention": []}
    changes |= {"experiment.ensembles": [{"name": "seeds", "models": [name]}], "report.headline": [name]}
    change_params(workspace, changes | {"pretrain.epochs": 1})
    order = stages_run(run(workspace, "dvc", "repro").stdout)
    names = [name.split("@")[0] for name in order]
    assert names[names.index("pretrain") + 1 :].count("perplexity") == 1
    assert [name for name in names if "pretrain" in name or name == "report"] == [
        "pretrain", "train_pretrained", "evaluate_pretrained", "report",
    ]  # fmt: skip
    card = json.loads((workspace / f"models/{name}/1/0/model.json").read_text())
    start = json.loads((workspace / "data/pretrained/token_transformer-kmeans/1/0/pretrained.json").read_text())
    assert card["input"]["masked_pretraining"]["weights"] == start["weights"]
    assert stale(workspace) == set()
    change_params(workspace, {"train.label_smoothing": 0.0})
    run(workspace, "python", "-m", "stages.code")
    assert {name.split("@")[0] for name in stale(workspace)} == {"train_pretrained"}


@pytest.mark.slow
def test_a_supervised_vocabulary_alone_follows_labels(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "workspace")
    lda = {"dimensions": None, "context": 2, "shrinkage": 0.1}
    lists = {"frame_models": [], "token_models": ["bag_of_tokens"], "supervised_vocabularies": ["kmeans"]}
    changes: dict[str, Any] = {f"experiment.{key}": value for key, value in lists.items()} | {"report.attention": []}
    changes |= {"experiment.folds": ["1"], "report.headline": ["bag_of_tokens-kmeans"]}
    changes |= {"experiment.ensembles": [{"name": "seeds", "models": ["bag_of_tokens-kmeans"]}]}
    change_params(workspace, changes | {"vocabularies.kmeans.features.lda": lda})
    names = stages_run(run(workspace, "dvc", "repro", "--glob", "evaluate_tokens*").stdout)
    assert names.index("supervision@kmeans-1") < names.index("vocabulary@kmeans-1")

    split = SPLIT.open(workspace / "data/splits/1.parquet").columns.to_pylist()
    clip = {row["role"]: row["clip_id"] for row in split}
    classes = open_clips(workspace / "data/clips.parquet").metadata["classes"]
    change_params(workspace, {"labels.use": "mine.csv"})
    for role, fitted in (("test", []), ("train", ["supervision@kmeans-1", "vocabulary@kmeans-1"])):
        (workspace / "mine.csv").write_text(f"clip,labels\n{clip[role]},{classes[0]}\n")
        names = stages_run(run(workspace, "dvc", "repro", "--glob", "vocabulary*").stdout)
        assert [name for name in names if name.startswith(("supervision", "vocabulary"))] == fitted


def learned(name: str, model: str) -> dict[str, Any]:
    """Return the changes that make a vocabulary of hidden states of a model."""
    features = {"hidden_states": {"model": model, "layer": None}, "deltas": 0, "stack": 1, "pca": None, "lda": None}
    return {
        "experiment.vocabularies": ["kmeans", name],
        f"vocabularies.{name}.features": features,
        "experiment.learned_vocabularies": [{"vocabulary": name, "model": model}],
    }


def test_a_vocabulary_of_hidden_states_follows_its_network_alone(tried: Path) -> None:
    kmeans = read_params(tried / "params.yaml")["vocabularies"]["kmeans"]
    change_params(tried, {"vocabularies.units": kmeans} | learned("units", "ast"))
    write_code(tried)
    make_folders(Layout(tried), ["kmeans", "units"], FOLDS)
    with chdir(tried), Repo() as repo:
        graph = repo.index.graph  # edges run from a stage to what it depends on
        (own,) = (stage for stage in graph if stage.addressing == "vocabulary@units-1")
        followed = {stage.addressing for stage in networkx.descendants(graph, own)}
    assert "network@learned0-1" in followed
    assert {name for name in followed if name.startswith(("train", "evaluate"))} == {"train_frames@ast-1-0"}
    assert "train_tokens@bag_of_tokens-units-1-0" in stage_names(tried)


@pytest.mark.slow
def test_a_vocabulary_of_hidden_states_is_fitted_again_with_its_network(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "workspace")
    kmeans = read_params(workspace / "params.yaml")["vocabularies"]["kmeans"]
    lists = {"frame_models": ["ast", "frame_statistics"], "token_models": ["bag_of_tokens"]}
    changes: dict[str, Any] = {f"experiment.{key}": value for key, value in lists.items()} | {"report.attention": []}
    changes |= {
        "experiment.folds": ["1"],
        "report.headline": ["ast"],
        "experiment.ensembles": [{"name": "seeds", "models": ["ast"]}],
    }
    changes |= (
        {"vocabularies.units": kmeans | {"num_tokens": 8}}
        | learned("units", "ast")
        | {"experiment.vocabularies": ["units"]}
    )
    change_params(workspace, changes)
    names = stages_run(run(workspace, "dvc", "repro", "--glob", "evaluate_tokens*").stdout)
    order = ["train_frames@ast-1-0", "network@learned0-1", "vocabulary@units-1", "tokenize@units-1"]
    assert [name for name in names if name in order] == order
    assert stale(workspace) & set(order) == set()
    change_params(workspace, {"models.frame_statistics.penalty": 2.0})
    assert not set(stages_run(run(workspace, "dvc", "repro", "vocabulary@units-1").stdout)) & set(order)
    change_params(workspace, {"models.ast.encoder.depth": 2})
    names = stages_run(run(workspace, "dvc", "repro", "tokenize@units-1").stdout)
    assert [name for name in names if name in order] == order


def plan_rows(workspace: Path) -> dict[str, list[str]]:
    """Return stage -> the cells of `sonolex plan`."""
    lines = [line for line in run(workspace, "sonolex", "plan").stdout.splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    return {row[0]: row[1:] for row in cells}


@pytest.mark.slow
def test_the_plan_says_what_would_run_and_why(changed: Path) -> None:
    before = plan_rows(changed)
    shards = before["spectrogram"][1]
    assert int(shards) >= 1
    assert before["spectrogram"][:4] == ["0 of 1", shards, "0", "0"]
    assert all(row[0].startswith("0 of") for row in before.values())
    change_params(changed, {"vocabularies.kmeans.num_tokens": 20})
    tokens = plan_rows(changed)
    assert tokens["spectrogram"][0] == "0 of 1"
    assert tokens["train_frames"][0] == "0 of 2"
    assert tokens["vocabulary"][4] == "param vocabularies.kmeans"
    assert tokens["tokenize"][4] == "follows vocabulary"
    change_params(changed, {"spectrogram.front_end.hop_length": 200})
    frames = plan_rows(changed)
    assert frames["spectrogram"][:5] == ["1 of 1", "0", shards, "50", f"param ({shards})" if shards != "1" else "param"]


@pytest.mark.slow
def test_every_mistake_in_params_is_named_before_anything_runs(changed: Path) -> None:
    change_params(changed, {"train.epochs": -1, "models.ast.encoder.deepth": 3, "spectrogram.front_end.hop_lenght": 80})
    done = run(changed, "dvc", "repro", check=False)
    assert done.returncode != 0
    for key in ("train.epochs", "models.ast.encoder.deepth", "spectrogram.front_end.hop_lenght"):
        assert f"params.yaml: {key}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_an_edited_artifact_is_refused_and_made_again(finished: Path) -> None:
    table = finished / "data/development/clips/1.parquet"
    content = table.read_bytes()
    table.unlink()  # a file of DVC's cache may be linked here: never write through it
    table.write_bytes(content[:-30])
    done = run(finished, "python", "-m", "stages.vocabulary", "kmeans", "--fold", "1", check=False)
    assert done.returncode == 1
    assert "data/development/clips/1.parquet: file: expected a whole Parquet file" in done.stderr
    assert "Traceback" not in done.stderr
    run(finished, "dvc", "checkout", "-q", "--force")
    run(finished, "python", "-m", "stages.code")  # of these params: another test's are put back
    assert stale(finished) == set()


@pytest.mark.slow
def test_a_label_retrains_the_folds_that_train_on_its_clip_alone(changed: Path) -> None:
    split = SPLIT.open(changed / "data/splits/1.parquet").columns.to_pylist()
    clip = {row["role"]: row["clip_id"] for row in split}
    classes = open_clips(changed / "data/clips.parquet").metadata["classes"]
    change_params(changed, {"labels.use": "mine.csv"})
    try:
        for role, retrained in (("test", set()), ("train", {"train_frames", "train_tokens"})):
            (changed / "mine.csv").write_text(f"clip,labels\n{clip[role]},{classes[0]}\n")
            output = run(changed, "dvc", "repro", "--glob", "development*").stdout
            assert stages_run(output) == ["code", "corpus", "development@1"]
            # The data page tells of the table, whosever labels it replaces.
            assert {name.partition("@")[0] for name in stale(changed)} == {"report"} | retrained
    finally:
        change_params(changed, {"labels.use": ""})
        run(changed, "dvc", "repro", "-q", "--glob", "development*")
    assert stale(changed) == set()


@pytest.mark.slow
def test_plots_show_curves_confusion_and_classes(finished: Path, tmp_path: Path) -> None:
    run(finished, "dvc", "plots", "show", "-o", str(tmp_path / "plots"))
    page = (tmp_path / "plots/index.html").read_text()
    for name in ("loss_ast", "confusion_token_transformer-kmeans", "per_class_bag_of_tokens-kmeans"):
        assert f"results_plots_{name}_csv" in page


@pytest.mark.slow
def test_experiments_compare_in_one_table(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "workspace")
    change_params(workspace, {"experiment.folds": ["1", "2"]})
    finish(workspace)
    output = run(workspace, "dvc", "exp", "run", "-S", "models.ast.encoder.depth=2").stdout
    trained = {line for line in output.splitlines() if "Running stage 'train" in line}
    assert len(trained) == 2
    # As the README shows it: file columns dropped. Which metrics changed is for the models to say, so all are shown here.
    shown = run(workspace, "dvc", "exp", "show", "--csv", "--drop", "[a-z]+(/|$)").stdout
    columns, *rows = csv.reader(shown.splitlines())
    metrics = json.loads((workspace / "results/metrics.json").read_text())
    scalars = {f"{model}.{name}" for model, values in metrics.items() for name in values}
    assert len(scalars) <= 12
    assert scalars <= set(columns)
    assert "models.ast.encoder.depth" in columns
    assert not [name for name in columns if "/" in name]
    assert {"1", "2"} <= {row[columns.index("models.ast.encoder.depth")] for row in rows}
    changed = run(workspace, "dvc", "exp", "show", "--csv", "--only-changed", "--drop", "[a-z]+(/|$)").stdout
    assert "models.ast.encoder.depth" in changed.splitlines()[0]
