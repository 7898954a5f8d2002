"""Paths in params.yaml name one file: with `~`, relative, and from the workspaces that DVC runs experiments in."""

import importlib
import json
import os
import pkgutil
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args

import pytest
from conftest import REPOSITORY, make_wav_corpus
from pydantic import AfterValidator
from ruamel.yaml import YAML
from test_audioset import WHOLE, make_tars
from test_corpora import table_params
from test_spectrogram_stage import PARAMS
from typer.testing import CliRunner
from workspace import change_params, finish, make_workspace, run

import pipeline
import stages.corpus
import stages.spectrogram
from pipeline.artifacts.layout import Layout
from pipeline.artifacts.spectrogram import open_spectrogram
from pipeline.corpora.base import AudioParams
from pipeline.corpora.content import STORE_PATH, content_digests
from pipeline.corpora.registry import CorpusParams
from pipeline.corpora.relabelling import UsedLabels
from pipeline.errors import ParamsError, SonolexError
from pipeline.evaluation.enhancement import LabelParams
from pipeline.execution.executors import ExecutionParams
from pipeline.models.registry import CHECKPOINT_FORMATS
from pipeline.params import Params, load_params, validate_params
from pipeline.paths import input_path, project_folder, shared_path
from pipeline.spectrogram.settings import SpectrogramParams
from tools.sonolex import app

EXECUTION = {"executor": "local", "workers": 1, "scheduler": "", "memo": ".sonolex/memo"}
ESC50 = {"kind": "esc50", "root": "sounds", "table": "meta/esc50.csv", "max_bad_fraction": 0.0, "max_duration": 5.0}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a project, which is the current one, beside a home folder."""
    (tmp_path / "home").mkdir()
    (tmp_path / "project").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture
def experiment(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the workspace of one of its experiments, which is the current folder."""
    workspace = project / ".dvc" / "tmp" / "exps" / "tmpq1w2e3"
    workspace.mkdir(parents=True)
    monkeypatch.chdir(workspace)
    return workspace


# what a path means


def test_a_relative_path_is_the_projects_in_every_workspace(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = project.parent / "home"
    for folder in (".", ".dvc/tmp/exps/tmp1", ".dvc/tmp/exps/tmp1/below"):
        (project / folder).mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(project / folder)
        assert project_folder() == project
        assert shared_path("audio") == project / "audio"
        assert shared_path("/audio") == Path("/audio")
        assert shared_path("~/audio") == home / "audio"


def test_a_file_that_is_read_is_the_workspaces_own_or_else_the_projects(project: Path, experiment: Path) -> None:
    (experiment / "tracked.csv").touch()
    for name in ("tracked.csv", "table.csv"):
        (project / name).touch()
    assert input_path("tracked.csv") == experiment / "tracked.csv"
    assert input_path("table.csv") == project / "table.csv"
    assert input_path("nowhere.csv") == project / "nowhere.csv"  # as messages have it


def test_the_home_folder_of_nobody_is_refused(project: Path) -> None:
    with pytest.raises(
        ParamsError, match=r"corpus\.root: expected a user of this machine after ~, found no user no-one"
    ):
        validate_params(AudioParams, ESC50 | {"root": "~no-one/audio"}, "corpus")


def _sections() -> Iterator[type[Params]]:
    """Yield the class of every section, and of every part of one."""
    for module in pkgutil.walk_packages(pipeline.__path__, "pipeline."):
        importlib.import_module(module.name)
    waiting = [Params]
    while waiting:
        section = waiting.pop()
        waiting += section.__subclasses__()
        if section.__module__.startswith("pipeline."):
            yield section


def _paths(annotation: Any, notes: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the notes of every path in an annotation."""
    if annotation is Path:
        yield notes
    elif hasattr(annotation, "__metadata__"):
        yield from _paths(annotation.__origin__, annotation.__metadata__)
    else:
        for inner in get_args(annotation):
            yield from _paths(inner)


def test_every_path_of_params_has_a_meaning() -> None:
    """A bare Path would take `~` and relative paths as they stand."""
    found = {
        f"{section.__module__}.{name}": notes
        for section in _sections()
        for name, field in section.model_fields.items()
        for notes in _paths(Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation)
    }
    known = {"corpora.base.root", "corpora.table.table", "corpora.audioset.tables", "execution.executors.memo"}
    assert {f"pipeline.{key}" for key in known} <= set(found)
    bare = [key for key, notes in found.items() if not any(isinstance(note, AfterValidator) for note in notes)]
    assert not bare


def test_loaded_paths_are_absolute_and_dumped_ones_are_names(project: Path) -> None:
    values = ESC50 | {"root": "~/ESC-50", "table": "~/mine/esc50.csv"}
    corpus: Any = validate_params(CorpusParams, values, "corpus")
    assert (corpus.root, corpus.table) == (project.parent / "home/ESC-50", project.parent / "home/mine/esc50.csv")
    assert corpus.model_dump(mode="json")["root"] == "ESC-50"
    labels = validate_params(UsedLabels, {"use": "~/labels.parquet"}, "labels")
    assert labels.use == project.parent / "home/labels.parquet"
    assert validate_params(UsedLabels, {"use": ""}, "labels").use is None
    assert (
        validate_params(ExecutionParams, EXECUTION | {"memo": "~/memo"}, "execution").memo
        == project.parent / "home/memo"
    )


def test_where_dvc_reads_a_path_the_message_says_what_to_write(project: Path) -> None:
    values = {"use": "", "enhance": [], "models": ["ast"], "types": [1], "threshold": "mean"}
    with pytest.raises(ParamsError) as caught:
        validate_params(LabelParams, values | {"ontology": "~/kinds.csv"}, "labels")
    assert str(caught.value) == (
        "params.yaml: labels.ontology: expected a path without ~, since DVC reads it as it stands; "
        f"write {project.parent}/home/kinds.csv, found '~/kinds.csv'"
    )
    assert validate_params(LabelParams, values | {"ontology": "kinds.csv"}, "labels").ontology == Path("kinds.csv")


@pytest.mark.parametrize("kind", CHECKPOINT_FORMATS)
def test_weights_at_home_and_of_the_project_are_found(experiment: Path, project: Path, kind: str) -> None:
    home = project.parent / "home"
    for source, path in (("~/w.pth", home / "w.pth"), ("weights/w.pth", project / "weights/w.pth")):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no weights")
        with pytest.raises(SonolexError, match=rf"{path.parent}(/w\.pth)?: expected"):
            _read_weights(kind, source)


def _read_weights(kind: str, source: str) -> None:
    checkpoint = CHECKPOINT_FORMATS[kind]
    known = {"kind": kind, "source": source, "digest": None, "classes": None, "frames": 64, "mean": 0.0, "std": 1.0}
    values = {key: value for key, value in known.items() if key in checkpoint.Params.model_fields}
    checkpoint(validate_params(checkpoint.Params, values, "pretrained"))


def test_compose_takes_a_path_at_home(project: Path) -> None:
    """Bash leaves the ~ of `corpus.root=~/ESC-50` as it is."""
    make_wav_corpus(project.parent / "home" / "ESC-50")
    recipes = str(REPOSITORY / "recipes")
    done = CliRunner().invoke(app, ["compose", "esc50", "corpus.root=~/ESC-50", "--recipes", recipes])
    assert done.exit_code == 0, done.output
    assert YAML(typ="safe").load(Path("params.yaml"))["corpus"]["root"] == "~/ESC-50"
    stages.corpus.run(load_params(CorpusParams, "corpus"), load_params(UsedLabels, "labels"), Layout().clips)  # type: ignore[arg-type]
    assert Layout().clips.exists()


# workspaces of experiments


def _frames(corpus: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """Run the stages that read audio; return the manifest, and the report of the spectrogram's."""
    params: Any = validate_params(CorpusParams, corpus, "corpus")
    audio = validate_params(AudioParams, corpus, "corpus")
    execution = validate_params(ExecutionParams, EXECUTION, "execution")
    frames = validate_params(SpectrogramParams, PARAMS, "spectrogram")
    stages.corpus.run(params, validate_params(UsedLabels, {"use": ""}, "labels"), Layout().clips)
    stages.spectrogram.run(frames, audio, execution, Layout().clips, Layout().spectrogram)
    assert set(open_spectrogram(Layout().spectrogram).index.list("status")) == {"ok"}
    return Layout().clips.read_bytes(), json.loads(Layout().stage_report("spectrogram").read_text())


def test_stages_of_an_experiment_find_audio_memo_and_digests(
    project: Path, experiment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wav_corpus(project / "sounds")
    for path in (project / "sounds").rglob("*.wav"):
        os.utime(path, (1_700_000_000, 1_700_000_000))
    manifest, report = _frames(ESC50)
    assert report["decoded"] == 12
    assert {path.name for path in experiment.iterdir()} == {"data", "results"}
    monkeypatch.chdir(project)
    again, report = _frames(ESC50)
    assert again == manifest
    assert (report["decoded"], report["reused"]) == (0, 12)
    paths = sorted((project / "sounds" / "audio").iterdir())
    assert content_digests(paths, STORE_PATH).num_hashed == 0


def _corpora(root: Path, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write a corpus; return its params, and those that change when it lies in the folder `there` at home instead."""
    if kind == "esc50":
        make_wav_corpus(root)
        return {"table": "meta/esc50.csv"}, {"table": "~/there/meta/esc50.csv"}
    if kind == "table":
        files = sorted((make_wav_corpus(root) / "audio").iterdir())
        (root / "clips.csv").write_text(
            "\n".join(["path,fold,labels", *(f"audio/{f.name},{f.name[0]},a" for f in files)])
        )
        values = table_params(root, fold_column="fold").model_dump(exclude={"root", "max_bad_fraction", "max_duration"})
        return values | {"table": f"{root.name}/clips.csv"}, {"table": "~/there/clips.csv"}
    if kind == "audioset":
        make_tars(root)
        tables = {"bal_train": "train.csv", "unbal_train": None, "eval": "eval.csv"}
        values = {"tables": tables, "class_table": f"{root.name}/classes.csv", "missing": "drop"} | WHOLE
        return values, {"tables": tables | {"eval": "~/there/eval.csv"}, "class_table": "~/there/classes.csv"}
    root.mkdir()
    return {"clips_per_class": 1, "duration": 0.2, "seed": 0}, {}


@pytest.mark.parametrize("kind", ["esc50", "table", "audioset", "demo"])
def test_moving_a_corpus_changes_no_byte_of_its_manifest(project: Path, kind: str) -> None:
    values, moved = _corpora(Path("here"), kind)
    values |= {"kind": kind, "max_bad_fraction": 0.5, "max_duration": 15.0}

    def manifest(name: str, **changes: Any) -> bytes:
        params: Any = validate_params(CorpusParams, values | changes, "corpus")
        stages.corpus.run(params, validate_params(UsedLabels, {"use": ""}, "labels"), Path(name))
        return Path(name).read_bytes()

    first = manifest("first.parquet", root="here")
    shutil.move("here", project.parent / "home" / "there")
    assert manifest("second.parquet", root="~/there", **moved) == first


# the whole graph


@pytest.fixture(scope="module")
def relative(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished workspace whose corpus lies in a relative folder that Git ignores."""
    workspace = make_workspace(tmp_path_factory.mktemp("relative") / "workspace")
    make_wav_corpus(workspace / "audio" / "sounds")
    change_params(workspace, {"corpus": ESC50 | {"root": "audio/sounds"}})
    return finish(workspace)


def _sounds(workspace: Path) -> int:
    return Layout(workspace).page.read_text().count("data:audio/wav")


def _run_all(workspace: Path, name: str, change: str, way: str) -> None:
    run(workspace, "dvc", "exp", "run", way, "-n", name, "-S", change)
    if way == "--queue":
        run(workspace, "dvc", "queue", "start")
        until = time.monotonic() + 600
        while not re.search(rf"{name}.*(Success|Failed)", run(workspace, "dvc", "queue", "status").stdout):
            assert time.monotonic() < until, run(workspace, "dvc", "queue", "status").stdout
            time.sleep(1)


@pytest.mark.slow
@pytest.mark.parametrize(("way", "hop_length"), [("--temp", 200), ("--queue", 240)])
def test_experiments_elsewhere_read_a_relative_corpus(relative: Path, way: str, hop_length: int) -> None:
    """They ended in "12 of 12 clips cannot be used", and the report that `apply` brought had no sounds."""
    before = _sounds(relative)
    assert before
    name = f"elsewhere{way}"
    _run_all(relative, name, f"spectrogram.front_end.hop_length={hop_length}", way)
    run(relative, "dvc", "exp", "apply", name)
    assert open_spectrogram(Layout(relative).spectrogram).metadata["hop_length"] == hop_length
    assert _sounds(relative) == before
    run(relative, "git", "checkout", "-q", ".")
    run(relative, "dvc", "checkout", "-q", "--force")


@pytest.mark.slow
def test_a_report_alone_keeps_its_sounds(relative: Path) -> None:
    before = _sounds(relative)
    run(relative, "dvc", "exp", "run", "--temp", "-n", "shown", "-S", "report.worst=0")
    run(relative, "dvc", "exp", "apply", "shown")
    assert 0 < _sounds(relative) <= before


@pytest.mark.slow
def test_a_name_is_refused_before_a_shell_reads_it(relative: Path) -> None:
    before = (relative / "params.yaml").read_text()
    change_params(relative, {"experiment.folds": ["1;id>PWN_SH;x"]})
    done = run(relative, "dvc", "repro", check=False)
    (relative / "params.yaml").write_text(before)
    assert done.returncode
    assert "experiment.folds.0: expected a name of" in done.stderr
    assert not list(relative.glob("PWN*"))
