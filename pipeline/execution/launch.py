"""Several processes for one training run: which of them this one is, and how a stage starts them by itself.

`torchrun` starts the processes and tells each its place through environment variables (RANK, WORLD_SIZE, LOCAL_RANK); a
program run alone has none of them. Imports no torch: a baseline knows without it that another process leads.
"""

import os
import sys
from typing import Literal, NoReturn

from pydantic import PositiveInt

from pipeline.params import Params


class LaunchParams(Params):
    """How a stage is run. Tracked by no stage: it changes the time taken and who is told, not what is meant."""

    train_processes: PositiveInt  # that train one neural model together, on this machine; on GPUs one a GPU
    trackers: list[Literal["dvclive", "tensorboard", "wandb", "mlflow"]]  # that get a neural model's curves


def launched() -> bool:
    """Say whether torchrun started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def num_processes() -> int:
    """Return how many processes work on this run, on all machines."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def rank() -> int:
    """Return which of them this one is, from 0."""
    return int(os.environ["RANK"]) if launched() else 0


def local_rank() -> int:
    """Return which of the processes on this machine this one is, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0")) if launched() else 0


def is_main_process() -> bool:
    """Say whether this process is the one that writes."""
    return rank() == 0


def start_processes(module: str, processes: int) -> None:
    """Turn this program, `python -m module ...`, into torchrun with so many of them and the same arguments.

    Returns when it is among them already, or one is enough. torchrun takes this program's place and process id, so signals
    and the exit status pass between it and whoever started the stage.
    """
    if processes > 1 and not launched():
        _become_torchrun(module, processes)


def _become_torchrun(module: str, processes: int) -> NoReturn:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Left to itself, torchrun gives every process one thread, however many cores there are.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *torchrun, "-m", module, *sys.argv[1:]])  # noqa: S606 - no shell is the point
