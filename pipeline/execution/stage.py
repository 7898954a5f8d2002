"""Entry point of all stages: command line, logging, errors as messages, and the stage report.

    if __name__ == "__main__":
        stage_main(main)

The report (`results/stages/<stage>.json`, or `<stage>-<item>.json` for an item of a matrix) holds times and memory, which
differ from run to run. People and `sonolex` read it; it is neither an output nor an input of a DVC stage, and artifacts hold
none of it, so that the same inputs give the same bytes.
"""

import errno
import inspect
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import typer
from rich.console import Console
from rich.logging import RichHandler

from pipeline.artifacts.files import STORAGE_FAULTS, replacing, storage_fault
from pipeline.artifacts.layout import Layout, report_name
from pipeline.errors import SonolexError
from pipeline.execution.memory import own_peak_memory


def stage_main(main: Callable[..., None]) -> None:
    """Run `main` as a program: its parameters are the command line, its module's docstring is the help text.

    A SonolexError, or an error of the storage (disk full or failing, no permission), is printed on stderr as a message
    without a traceback, and the program exits with status 1. Any other exception is a fault of the program and keeps its
    traceback.
    """
    start_logging()
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    module = sys.modules[main.__module__]
    app.command(help=inspect.cleandoc(module.__doc__ or ""))(main)
    try:
        app()
    except SonolexError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(1)
    except Exception as error:
        message = storage_message(error)
        if not message:
            raise
        sys.stderr.write(f"error: {message}\n")
        sys.exit(1)


def storage_message(error: Exception) -> str:
    """Return the message for an error of the storage (see STORAGE_FAULTS), or "" for any other."""
    number = storage_fault(error)
    if number is None:
        return ""
    where = (isinstance(error, OSError) and error.filename) or "output"
    return f"{where}: {STORAGE_FAULTS[number]}; {_storage_advice(number, Path(where))}"


def _storage_advice(number: int, path: Path) -> str:
    if number in (errno.EACCES, errno.EPERM):
        return f"give it to the user that runs this (number {os.geteuid()}), then run again"
    if number not in (errno.ENOSPC, errno.EDQUOT):
        return "check the disk, then run again"
    folder = next(folder for folder in path.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(folder).free / 2**20
    return (
        f"{free:.0f} MiB are free without this run's unfinished files; make room, then run again: finished work is kept"
    )


def start_logging() -> None:
    """Send log records of level INFO and above to stderr: through rich on a terminal, as plain lines elsewhere."""
    handler: logging.Handler
    if sys.stderr.isatty():
        handler = RichHandler(console=Console(stderr=True), show_path=False, log_time_format="%H:%M:%S")
    else:  # rich would wrap and pad lines to 80 columns in DVC's and CI's logs
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-8s %(message)s", "%H:%M:%S"))
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)  # it logs every build of FAISS that it tries
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler], force=True)


@dataclass
class StageReport:
    """Counters of one run of a stage; its time starts when the report is created."""

    stage: str
    item: str = ""  # of a matrix stage, for example the fold
    clips: int = 0
    decoded: int = 0
    reused: int = 0
    failed: dict[str, int] = field(default_factory=dict)  # reason -> clips
    shards: int = 0
    bytes_written: int = 0
    executor: str = "local"
    workers: int = 1  # processes; 1 = everything ran in this one, unless the executor is a cluster
    worker_memory: int = 0  # bytes, peak of the largest worker process; 0 when there is none
    incidents: list[str] = field(default_factory=list)  # faults that were recovered from, as sentences
    result: str = ""  # digest of the output, to match the report with an artifact later
    timing: dict[str, object] = field(default_factory=dict)  # of training: see `time_training`
    started: float = field(default_factory=time.perf_counter, repr=False)

    def time_training(self, seconds: float, epochs: Sequence[Mapping[str, float]] = ()) -> None:
        """Record the seconds of training alone, those before a kill included, and the timing of each epoch.

        An epoch's timing is clips_per_second and input_fraction, the fraction of the time spent waiting for clips.
        """
        rounded = [{name: round(value, 4) for name, value in epoch.items()} for epoch in epochs]
        self.timing = {"training_seconds": round(seconds, 3), "epochs": rounded}

    def write(self, path: Path | None = None) -> Path:
        """Write the report as JSON, by default to `results/stages/<stage>[-<item>].json`, and return its path."""
        if path is None:
            path = Layout().stage_report(self.stage, self.item)
        seconds = time.perf_counter() - self.started
        counters = {
            "stage": self.stage,
            "item": self.item,
            "clips": self.clips,
            "decoded": self.decoded,
            "reused": self.reused,
            "failed": dict(sorted(self.failed.items())),
            "shards": self.shards,
            "seconds": round(seconds, 3),
            "clips_per_second": round(self.clips / max(seconds, 1e-9), 1),
            # An upper bound with several workers: each counts as the largest.
            "peak_memory_bytes": own_peak_memory() + self.workers * self.worker_memory,
            "bytes_written": self.bytes_written,
            "executor": f"{self.executor}, {self.workers} worker{'s' * (self.workers != 1)}",
            "incidents": self.incidents,
            "result": self.result,
            "timing": self.timing,
        }
        with replacing(path) as partial:
            partial.write_text(json.dumps(counters, indent=1) + "\n")
        return path


def training_seconds(folder: Path, item: str, result: str) -> float | None:
    """Return the training time of the model with the digest `result`, from the reports in a folder.

    None where this machine has not trained it: reports are not artifacts, so a clone has none, and the report of a model
    from DVC's cache may be of another run.
    """
    try:
        found = json.loads((folder / report_name("train", item)).read_text())
        return (
            float(found["timing"]["training_seconds"]) if (found["item"], found["result"]) == (item, result) else None
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
