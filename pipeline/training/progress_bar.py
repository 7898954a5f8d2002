"""Progress of a run, in epochs: a bar on a terminal, five lines in a log."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)


@contextmanager
def progress_bar(epochs: int, done: int, num_clips: int) -> Iterator[Callable[[dict[str, float]], None]]:
    """Yield a function that shows an epoch's numbers."""
    columns = (
        TextColumn("train"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs  loss {task.fields[loss]:.3f}  {task.fields[rate]:.0f} clips/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task("train", total=epochs, completed=done, loss=math.nan, rate=math.nan)

        def advance(row: dict[str, float]) -> None:
            bar.update(task, advance=1, loss=row["loss"], rate=row["clips_per_second"])
            finished = int(bar.tasks[0].completed)
            if not bar.console.is_terminal and finished % max(1, epochs // 5) == 0:
                log.info(
                    "epoch %d of %d: loss %.3f, %.0f clips/s (%d clips)",
                    finished, epochs, row["loss"], row["clips_per_second"], num_clips,
                )  # fmt: skip

        yield advance
