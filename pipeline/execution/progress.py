"""Progress of a stage, in clips or other units: a bar on a terminal, log lines elsewhere."""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 10.0  # of the log, without a terminal


@contextlib.contextmanager
def progress(label: str, total: int, *, unit: str = "clips") -> Iterator[Callable[[int], None]]:
    """Yield a function to call with the number of units just done: a bar on a terminal, log lines elsewhere."""
    started = time.perf_counter()
    done = 0

    def rate() -> float:
        return done / max(time.perf_counter() - started, 1e-9)

    if sys.stderr.isatty():
        columns = (
            TextColumn(label),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(f"{{task.fields[rate]:.0f}} {unit}/s"),
        )
        with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(label, total=total, rate=0.0)

            def advance_bar(count: int) -> None:
                nonlocal done
                done += count
                bar.update(task, completed=done, rate=rate())

            yield advance_bar
        return

    next_line = started + _SECONDS_BETWEEN_LINES

    def advance_log(count: int) -> None:
        nonlocal done, next_line
        done += count
        if time.perf_counter() >= next_line:
            log.info("%s: %d of %d %s, %.0f %s/s", label, done, total, unit, rate(), unit)
            next_line = time.perf_counter() + _SECONDS_BETWEEN_LINES

    yield advance_log
