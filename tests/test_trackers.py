"""Trackers: each gets every epoch through the calls that its package has, and nothing leaves this machine unasked."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from conftest import REPOSITORY

from pipeline.artifacts.curves import read_epochs
from pipeline.errors import ParamsError, SonolexError
from pipeline.execution.launch import LaunchParams
from pipeline.params import validate_params
from pipeline.training.distributed import ALONE
from pipeline.training.neural import curves
from pipeline.training.trackers import TrackedRun, open_trackers

PARAMS = {"params": {"kind": "ast", "stem": {"kind": "linear"}}, "train": {"epochs": 2}, "seed": 0}
RUN = TrackedRun("ast/1/0", PARAMS)
ROWS = [{"loss": 2.0, "learning_rate": 0.1}, {"loss": 1.0, "learning_rate": 0.0}]
VARIABLES = (
    "WANDB_MODE", "WANDB_PROJECT", "WANDB_ERROR_REPORTING",
    "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_DISABLE_TELEMETRY",
)  # fmt: skip


class Calls(list[tuple[Any, ...]]):
    """A list of calls, which makes functions that add to it."""

    def function(self, name: str, result: Any = None) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            self.append((name, *arguments, options) if options else (name, *arguments))
            return result

        return call


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # what a tracker sets is taken back after the test
        monkeypatch.delenv(name)


def _install(monkeypatch: pytest.MonkeyPatch, name: str, **members: Any) -> None:
    module = ModuleType(name)
    for member, value in members.items():
        setattr(module, member, value)
    monkeypatch.setitem(sys.modules, name, module)


def _track(names: list[str], run: TrackedRun = RUN) -> None:
    with open_trackers(names, run) as log:
        for epoch, row in enumerate(ROWS, 1):
            log({f"train/{name}": value for name, value in row.items()}, epoch)


def _fake_wandb(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls = Calls()
    run = SimpleNamespace(log=calls.function("log"), finish=calls.function("finish"))
    _install(monkeypatch, "wandb", init=calls.function("init", run))
    return calls


def test_wandb_is_offline_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _fake_wandb(monkeypatch)
    _track(["wandb"])
    options = {"project": "sonolex", "name": "ast/1/0", "config": PARAMS, "dir": ".sonolex", "mode": "offline"}
    assert calls == [
        ("init", options),
        ("log", {"train/loss": 2.0, "train/learning_rate": 0.1}, {"step": 1}),
        ("log", {"train/loss": 1.0, "train/learning_rate": 0.0}, {"step": 2}),
        ("finish",),
    ]
    assert Path(".sonolex").is_dir()
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    calls.clear()
    _track(["wandb"])
    assert calls[0][1] == options | {"project": "mine", "mode": "online"}


def test_a_run_that_fails_is_marked_as_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _fake_wandb(monkeypatch)
    with pytest.raises(KeyboardInterrupt), open_trackers(["wandb"], RUN):
        raise KeyboardInterrupt
    assert calls[-1] == ("finish", {"exit_code": 1})


class _ActiveRun:
    def __init__(self, calls: Calls) -> None:
        self.calls = calls

    def __enter__(self) -> "_ActiveRun":
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        self.calls.append(("end", kind))


def test_mlflow_writes_to_a_file_here_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls()
    names = ("set_tracking_uri", "set_experiment", "log_params", "log_metrics")
    functions = {name: calls.function(name) for name in names}
    _install(monkeypatch, "mlflow", start_run=calls.function("start_run", _ActiveRun(calls)), **functions)
    _track(["mlflow"])
    assert calls == [
        ("set_tracking_uri", f"sqlite:///{Path('.sonolex/mlflow.db').resolve()}"),
        ("set_experiment", "sonolex"),
        ("start_run", {"run_name": "ast/1/0"}),
        ("log_params", {"params.kind": "ast", "params.stem.kind": "linear", "train.epochs": 2, "seed": 0}),
        ("log_metrics", {"train/loss": 2.0, "train/learning_rate": 0.1}, {"step": 1}),
        ("log_metrics", {"train/loss": 1.0, "train/learning_rate": 0.0}, {"step": 2}),
        ("end", None),
    ]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    calls.clear()
    _track(["mlflow"])
    assert calls[0] == ("set_experiment", "sonolex")  # where, MLFLOW_TRACKING_URI says


def test_what_packages_send_of_themselves_is_off_before_they_are_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    imported = {}

    def fail(name: str) -> Any:
        imported[name] = {variable: os.environ.get(variable) for variable in VARIABLES}
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr("pipeline.training.trackers.importlib.import_module", fail)
    for name in ("wandb", "mlflow"):
        with pytest.raises(SonolexError):
            _track([name])
    assert imported["wandb"]["WANDB_ERROR_REPORTING"] == "false"
    assert imported["mlflow"]["MLFLOW_DISABLE_TELEMETRY"] == "true"


@pytest.mark.parametrize(
    ("tracker", "module"),
    [("dvclive", "dvclive.live"), ("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb"), ("mlflow", "mlflow")],
)
def test_a_missing_package_is_named_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tracker: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    message = rf"launch\.trackers: expected the package {tracker}.*pip install {tracker}, or remove it"
    with pytest.raises(SonolexError, match=message):
        _track([tracker])


def test_tensorboard_gets_scalars_in_a_folder_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls()
    writer = SimpleNamespace(**{name: calls.function(name) for name in ("add_text", "add_scalar", "close")})
    _install(monkeypatch, "torch.utils.tensorboard", SummaryWriter=calls.function("SummaryWriter", writer))
    _track(["tensorboard"])
    assert str(calls[0][1]).startswith(".sonolex/tensorboard/ast/1/0/2")
    assert calls[1][:2] == ("add_text", "params")
    assert '"epochs": 2' in calls[1][2]
    assert calls[2:] == [
        ("add_scalar", "train/loss", 2.0, 1),
        ("add_scalar", "train/learning_rate", 0.1, 1),
        ("add_scalar", "train/loss", 1.0, 2),
        ("add_scalar", "train/learning_rate", 0.0, 2),
        ("close",),
    ]


def test_tensorboard_itself_reads_what_was_written(tmp_path: Path) -> None:
    pytest.importorskip("torch.utils.tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _track(["tensorboard"])
    (folder,) = (tmp_path / ".sonolex/tensorboard/ast/1/0").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 2.0), (2, 1.0)]


def test_trackers_get_the_timing_and_the_table_does_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = _fake_wandb(monkeypatch)
    with curves(tmp_path / "ast/1/0", ALONE, ["wandb"], PARAMS) as log_epoch:
        for number, row in enumerate(ROWS, 1):
            log_epoch(row, {"clips_per_second": 7.0})
            assert (
                len((tmp_path / "ast/1/0/epochs.csv").read_text().splitlines()) == 1 + number
            )  # at once, to be watched
    assert calls[0][1]["name"] == "ast/1/0"
    assert [(call[1]["train/loss"], call[2]["step"]) for call in calls[1:-1]] == [(2.0, 1), (1.0, 2)]
    assert calls[1][1]["train/clips_per_second"] == 7.0
    assert (tmp_path / "ast/1/0/epochs.csv").read_text() == "epoch,loss,learning_rate\n1,2,0.1\n2,1,0\n"
    assert read_epochs(tmp_path / "ast/1/0", ["loss"]) == ROWS


def test_dvclive_writes_outside_the_artifacts(tmp_path: Path) -> None:
    pytest.importorskip("dvclive")
    _track(["dvclive"])
    curve = (tmp_path / "dvclive/ast/1/0/plots/metrics/train/loss.tsv").read_text().splitlines()
    assert curve == ["step\tloss", "0\t2.0", "1\t1.0"]
    assert {path.name for path in tmp_path.iterdir()} == {"dvclive"}


@pytest.mark.slow  # test_repo.py reads the project's imports; this one those of packages too
def test_training_imports_neither_dvc_nor_dvclive() -> None:
    program = "import sys, stages.train, pipeline.training.neural; print({'dvc', 'dvclive'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_an_unknown_tracker_is_refused() -> None:
    with pytest.raises(ParamsError, match=r"launch\.trackers\.0: .*'dvclive', 'tensorboard', 'wandb' or 'mlflow'"):
        validate_params(LaunchParams, {"train_processes": 1, "trackers": ["comet"]}, "launch")
