"""Experiment trackers: curves of a run in DVCLive, TensorBoard, W&B or MLflow.

`epochs.csv` in the run's folder holds the curves in any case (`pipeline/artifacts/curves.py`); `launch.trackers` names the
trackers that also get them, with the timing of each epoch. Their packages are optional and are imported when a tracker is
used. All write to this machine, below .sonolex/ (DVCLive below dvclive/, for `dvc plots`), and contact a server only if the
tracker's own environment variable says so: WANDB_MODE, MLFLOW_TRACKING_URI.
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
PROJECT = "sonolex"  # default; WANDB_PROJECT and MLFLOW_EXPERIMENT_NAME override it

# Function of metrics by name, and their epoch (from 1).
Log = Callable[[dict[str, float], int], None]


class TrackedRun(NamedTuple):
    """Name and params of a run, for trackers."""

    name: str  # model/fold/seed
    params: dict[str, object]  # plain values, in mappings and lists


@contextmanager
def open_trackers(names: Sequence[str], run: TrackedRun) -> Iterator[Log]:
    """Yield a function that passes metrics to each of the trackers. Raises SonolexError where a package is missing."""
    with ExitStack() as stack:
        logs = [stack.enter_context(_TRACKERS[name](run)) for name in names]

        def log(metrics: dict[str, float], epoch: int) -> None:
            for each in logs:
                each(metrics, epoch)

        yield log


@contextmanager
def _dvclive(run: TrackedRun) -> Iterator[Log]:
    dvclive = _import("dvclive.live", "dvclive")
    # No experiment, entry in dvc.yaml or report, since the pipeline has its own.
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
    # A folder per start of a run, since curves in one folder are drawn as one.
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
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read at import; error reports would go to W&B
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
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read at import; telemetry is on by default since 3.2
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
            f"pip install {package}, or remove it from launch.trackers"
        ) from None


def _leaves(params: dict[str, object], path: str = "") -> Iterator[tuple[str, object]]:
    """Yield (dotted name, value) of nested params, since MLflow truncates long values."""
    for key, value in params.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value
