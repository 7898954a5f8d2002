"""Progress of work that is counted in bytes: a bar with its rate on a terminal, log lines elsewhere."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 10.0  # without a terminal


class ByteCounter:
    """Bytes done so far, shown at every change."""

    def __init__(self, total: int | None, show: Callable[[int, int | None], None]) -> None:
        self._done, self._total, self._show = 0, total, show

    def advance(self, num_bytes: int) -> None:
        """Count bytes as done."""
        self.start(self._done + num_bytes, None)

    def start(self, done: int, total: int | None) -> None:
        """Set the number of bytes that are done, and the total if it is known now."""
        self._done, self._total = done, self._total if total is None else total
        self._show(self._done, self._total)


@contextmanager
def byte_progress(label: str, total: int | None) -> Iterator[ByteCounter]:
    """Show the progress of a task with a total in bytes, None where it is not known yet."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield ByteCounter(total, _lines(label))
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield ByteCounter(total, lambda done, whole: bar.update(task, completed=done, total=whole))


def spell_size(size: int | None) -> str:
    """Return a number of bytes for people."""
    if size is None:
        return "size unknown"
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _lines(label: str) -> Callable[[int, int | None], None]:
    started = logged = time.monotonic()
    first: int | None = None

    def show(done: int, total: int | None) -> None:
        nonlocal first, logged
        first = done if first is None or done < first else first  # an earlier run's bytes are no work of this one
        now = time.monotonic()
        if now - logged > _SECONDS_BETWEEN_LINES:
            logged = now
            share = f" of {total / 1e9:.2f}" if total else ""
            log.info("%s: %.2f%s GB, %.1f MB/s", label, done / 1e9, share, (done - first) / 1e6 / (now - started))

    return show
