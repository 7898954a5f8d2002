"""The grid of an experiment: which names it takes, what they are joined to, and the runs that it stands for."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from dvc.repo import Repo
from ruamel.yaml import YAML

from pipeline.artifacts.layout import Layout, ModelId, RunId, address_of
from pipeline.artifacts.model import MODEL
from pipeline.artifacts.pretrained import PRETRAINED
from pipeline.errors import ParamsError
from pipeline.grid import ExperimentParams
from pipeline.params import read_params, validate_params
from tools.plan import report_paths

GRID: dict[str, Any] = {
    "frame_models": ["ast"],
    "token_models": ["bert"],
    "pretrained_models": ["bert"],
    "supervised_vocabularies": [],
    "learned_vocabularies": [],
    "vocabularies": ["kmeans"],
    "folds": ["1", "2"],
    "seeds": [0, 1],
    "ensembles": [],
}


def grid(**changes: Any) -> ExperimentParams:
    return validate_params(ExperimentParams, GRID | changes, "experiment")


def test_runs_are_every_model_on_every_fold_with_every_seed() -> None:
    experiment = grid()
    assert experiment.model_ids == [
        ModelId("ast"),
        ModelId("bert", "kmeans"),
        ModelId("bert", "kmeans", pretrained=True),
    ]
    assert experiment.models == ["ast", "bert-kmeans", "bert-kmeans-pretrained"]
    brackets = ("", " (stored weights)", " (mean of weights)")
    names = [name + variant for name in experiment.models[1:] for variant in brackets]
    assert experiment.reads == dict.fromkeys(names, "kmeans")
    runs = experiment.runs()
    assert len(set(runs)) == len(runs) == 3 * 2 * 2
    assert runs[-1] == RunId.of("bert", "2", 1, vocabulary="kmeans", pretrained=True)
    variant = ModelId("bert", "kmeans", pretrained=True).variants[1]
    assert (variant.name, variant.plain) == ("bert-kmeans-pretrained (mean of weights)", runs[-1].model)
    assert RunId(variant, "2", 1).path == runs[-1].path  # it has no artifact of its own


@pytest.mark.parametrize(
    "name", ["a;id>PWN_SH;x", "a b", "$(id)", "../a", "a/b", "a.b", "-a", "", "ä", "a\n", "a" * 65]
)
@pytest.mark.parametrize("key", ["frame_models", "token_models", "pretrained_models", "vocabularies", "folds"])
def test_what_becomes_a_path_or_a_command_is_a_plain_name(key: str, name: str) -> None:
    with pytest.raises(
        ParamsError, match=rf"experiment\.{key}\.0: expected a name of at most 64 letters, digits, _ and -"
    ):
        grid(**{key: [name]})


def test_ensembles_are_called_likewise() -> None:
    with pytest.raises(ParamsError, match=r"experiment\.ensembles\.0\.name: expected a name of"):
        grid(ensembles=[{"name": "a|b", "models": ["ast"]}])
    assert grid(folds=["official-1", "0_a"], ensembles=[{"name": "A-1", "models": ["ast"]}])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"token_models": ["a-b", "a"], "vocabularies": ["c", "b-c"]},
            "a-b-c for the model a-b with the vocabulary c and",
        ),
        (
            {"frame_models": ["bert-kmeans"]},
            "bert-kmeans for the model bert-kmeans and for the model bert with the vocabulary",
        ),
        ({"ensembles": [{"name": "ast", "models": ["ast"]}]}, "ast for the model ast and for the ensemble ast"),
        (
            {"vocabularies": ["w", "w-2"], "folds": ["2-1", "1"]},
            "w-2-1 for fold 2-1 of the vocabulary w and for fold 1 of",
        ),
        (
            {"frame_models": ["a", "a-1"], "folds": ["1", "1-1"]},
            "a-1-1-0 for seed 0 on fold 1-1 of the model a and",
        ),
        ({"frame_models": ["ast-pretrained"]}, "without the suffix -pretrained .* found ast-pretrained; rename"),
        ({"vocabularies": ["pretrained"]}, "without the suffix -pretrained .* found pretrained; rename"),
    ],
)
def test_two_things_of_one_name_are_refused(changes: dict[str, Any], message: str) -> None:
    """`bert-kmeans-pretrained` was written twice, and of `a-b` with `c` and `a` with `b-c` one was never trained."""
    with pytest.raises(ParamsError, match=message):
        grid(**changes)


def test_names_of_runs_in_paths_items_and_reports(tmp_path: Path) -> None:
    layout, run = Layout(tmp_path), RunId.of("bert", "1", 0, vocabulary="kmeans", pretrained=True)
    assert (run.name, run.item) == ("bert-kmeans-pretrained-1-0", "bert-kmeans-1-0")
    assert layout.prediction(run) == tmp_path / "predictions/bert-kmeans-pretrained/1/0.parquet"
    assert layout.stage_report("train", run.name) == tmp_path / "results/stages/train-bert-kmeans-pretrained-1-0.json"


def test_an_error_names_the_stage_that_writes_a_run(tmp_path: Path) -> None:
    for run in grid().runs():
        assert address_of("train_*", Layout().model(run)) in (run.stage("train"), f"train_*@{run.item}")
    run = RunId.of("bert", "1", 0, vocabulary="kmeans", pretrained=True)
    assert "train_pretrained@bert-kmeans-1-0` (" in str(MODEL.error(Layout().model(run), "a", expected=1, found=2))
    assert "pretrain@bert-kmeans-1-0` (" in str(PRETRAINED.error(Layout().pretrained(run), "a", expected=1, found=2))


def test_each_run_is_planned_by_its_own_time(tmp_path: Path) -> None:
    """A pretrained model has the item of the plain one, and was given its time: 10 s for 99."""
    layout, experiment = Layout(tmp_path), grid()
    layout.stage_reports.mkdir(parents=True)
    for number, run in enumerate(experiment.runs()):
        layout.stage_report("train", run.name).write_text(json.dumps({"seconds": number}))
    paths = report_paths(experiment, layout)
    seconds = {run: json.loads(paths[run.stage("train")].read_text())["seconds"] for run in experiment.runs()}
    assert list(seconds.values()) == list(range(len(experiment.runs())))
    assert paths["atlas@kmeans"] == layout.stage_report("atlas", "kmeans-1")


def test_every_stage_of_the_graph_is_planned_by_the_report_that_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DVC numbers the items of a list of mappings: a network was planned by a report that no stage writes."""
    learned = {"vocabulary": "units", "model": "ast"}, {"vocabulary": "again", "model": "bert-units"}
    experiment = grid(vocabularies=["kmeans", "units", "again"], learned_vocabularies=list(learned), ensembles=[])
    document = read_params(REPOSITORY / "params.yaml") | {"experiment": experiment.model_dump(mode="json")}
    document["atlas"]["attribution"], document["report"]["attention"] = ["bert"], ["ast"]
    YAML(typ="safe").dump(document, tmp_path / "params.yaml")
    shutil.copy(REPOSITORY / "dvc.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    with Repo.init(str(tmp_path), no_scm=True) as repo:
        names = {stage.addressing for stage in repo.index.stages}
    layout = Layout()
    found, items = report_paths(experiment, layout), (("1", "units"), ("2", "units"), ("1", "again"), ("2", "again"))
    networks = {name for name in names if name.startswith("network@")}
    written = {layout.stage_report("network", f"{vocabulary}-{fold}") for fold, vocabulary in items}
    assert len(networks) == len(written) == 4
    assert {found[name] for name in networks} == written
    assert set(found) <= names
    others = {name.partition("@")[0] for name in names - set(found) if "@" in name}
    by_their_values = {"attention", "attribution", "development", "ngram_perplexity", "perplexity", "pretrain", "split"}
    assert others == by_their_values | {"tokenize", "vocabulary"}
