"""Trackers: the curves of a run for those who look at runs in DVCLive, TensorBoard, W&B or MLflow.

`epochs.csv` in the run's folder holds the curves in any case (`pipeline/artifacts/curves.py`); `launch.trackers` names who
gets them besides, with the timing of each epoch. Their packages are no part of the project and are imported when a tracker
is asked for. All write to this machine, below .sonolex/ (DVCLive below dvclive/, where `dvc plots` may look), and reach a
server only when the tracker's own variable of the environment says so: WANDB_MODE, MLFLOW_TRACKING_URI.
"""

import importlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import SonolexError

FOLDER = Path(".sonolex")
PROJECT = "sonolex"  # WANDB_PROJECT and MLFLOW_EXPERIMENT_NAME name another

# Takes metrics by name, and the epoch from 1 that they are of.
Log = Callable[[dict[str, float], int], None]


class TrackedRun(NamedTuple):
    """What a tracker is told of a run before its first epoch."""

    name: str  # model/fold/seed
    params: dict[str, Any]  # plain values, in mappings and lists


@contextmanager
def open_trackers(names: Sequence[str], run: TrackedRun) -> Iterator[Log]:
    """Yield a function that hands metrics to each of the trackers. Raises SonolexError where a package is missing."""
    with ExitStack() as stack:
        logs = [stack.enter_context(_TRACKERS[name](run)) for name in names]

        def log(metrics: dict[str, float], epoch: int) -> None:
            for each in logs:
                each(metrics, epoch)

        yield log


@contextmanager
def _dvclive(run: TrackedRun) -> Iterator[Log]:
    dvclive = _import("dvclive.live", "dvclive")
    # No experiment, no entry in dvc.yaml, no report: the pipeline has its own.
    options = {"dvcyaml": None, "save_dvc_exp": False, "report": None, "cache_images": False}
    with dvclive.Live(str(Path("dvclive") / run.name), **options) as live:

        def log(metrics: dict[str, float], _epoch: int) -> None:
            for name, value in metrics.items():
                live.log_metric(name, value, timestamp=False)
            live.next_step()

        yield log


@contextmanager
def _tensorboard(run: TrackedRun) -> Iterator[Log]:
    tensorboard = _import("torch.utils.tensorboard", "tensorboard")
    # A folder for each time that a run is made: curves in one folder are drawn as one.
    folder = FOLDER / "tensorboard" / run.name / time.strftime("%Y%m%d-%H%M%S")
    writer = tensorboard.SummaryWriter(str(folder))
    writer.add_text("params", f"```\n{json.dumps(run.params, indent=1)}\n```")

    def log(metrics: dict[str, float], epoch: int) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, epoch)

    try:
        yield log
    finally:
        writer.close()


@contextmanager
def _wandb(run: TrackedRun) -> Iterator[Log]:
    mode = os.environ.get("WANDB_MODE", "offline")
    if mode != "online":
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read at import; reports go to W&B's makers
    wandb = _import("wandb", "wandb")
    FOLDER.mkdir(exist_ok=True)
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    tracked = wandb.init(project=project, name=run.name, config=run.params, dir=str(FOLDER), mode=mode)
    try:
        yield lambda metrics, epoch: tracked.log(metrics, step=epoch)
    except BaseException:
        tracked.finish(exit_code=1)
        raise
    tracked.finish()


@contextmanager
def _mlflow(run: TrackedRun) -> Iterator[Log]:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read at import; since 3.2 it is on by itself
    mlflow = _import("mlflow", "mlflow")
    if "MLFLOW_TRACKING_URI" not in os.environ:
        FOLDER.mkdir(exist_ok=True)
        mlflow.set_tracking_uri(f"sqlite:///{(FOLDER / 'mlflow.db').resolve()}")
    mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
    with mlflow.start_run(run_name=run.name):
        mlflow.log_params(dict(_leaves(run.params)))
        yield lambda metrics, epoch: mlflow.log_metrics(metrics, step=epoch)


_TRACKERS: dict[str, Callable[[TrackedRun], AbstractContextManager[Log]]] = {
    "dvclive": _dvclive,
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}


def _import(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SonolexError(
            f"launch.trackers: expected the package {package} for the tracker of this name, found none ({error}); "
            f"pip install {package}, or take it out of launch.trackers"
        ) from None


def _leaves(params: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted names and values: MLflow cuts long ones."""
    for key, value in params.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value
