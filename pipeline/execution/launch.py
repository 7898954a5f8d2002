"""Launching of data-parallel training: rank of this process from torchrun's variables, and a stage's own start of torchrun.

`torchrun` starts the processes and sets RANK, WORLD_SIZE and LOCAL_RANK; they are absent in a single process. Imports no
torch, so that baselines need not.
"""

import os
import sys
from typing import Literal, NoReturn

from pydantic import PositiveInt

from pipeline.execution.threads import allowed_cores
from pipeline.params import Params


class LaunchParams(Params):
    """The section `launch`: processes and trackers of training. No stage depends on it, since it changes no result."""

    train_processes: PositiveInt  # per neural model, on this machine; with GPUs one per GPU
    trackers: list[Literal["dvclive", "tensorboard", "wandb", "mlflow"]]  # that receive a neural model's curves


def launched() -> bool:
    """Return whether torchrun started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def num_processes() -> int:
    """Return the number of processes of this run, on all machines."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def rank() -> int:
    """Return the rank of this process, from 0."""
    return int(os.environ["RANK"]) if launched() else 0


def local_rank() -> int:
    """Return the rank of this process on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0")) if launched() else 0


def is_main_process() -> bool:
    """Return whether this is the process that writes results."""
    return rank() == 0


def start_processes(module: str, processes: int) -> None:
    """Replace this program, `python -m module ...`, by torchrun with this many processes and the same arguments.

    Returns in a process that torchrun started, or when one process is asked for. torchrun keeps this program's process id,
    so signals and the exit status pass between it and the caller of the stage.
    """
    if processes > 1 and not launched():
        _become_torchrun(module, processes)


def _become_torchrun(module: str, processes: int) -> NoReturn:
    # By default torchrun gives every process one thread, regardless of the number of cores.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, allowed_cores() // processes)))
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *torchrun, "-m", module, *sys.argv[1:]])  # noqa: S606 - no shell is the point
