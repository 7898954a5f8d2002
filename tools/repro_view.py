"""Progress of `sonolex repro`: a live table on a terminal, a line for each start and end elsewhere."""

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

OUTCOMES = {
    "ran": "ran",
    "restored": "from the run cache",
    "unchanged": "unchanged",
    "failed": "[red]failed[/]",
    "stopped": "stopped",
}
_TAIL_BYTES = 4096


@dataclass
class Running:
    """A running stage: start time, log file, and state."""

    name: str
    log_path: Path
    cores: int
    started: float = field(default_factory=time.monotonic)
    state: str = "checked by DVC"  # until its command starts

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started


class View:
    """Terminal view of a run; only `refresh` draws it, without a thread, which would make forks unsafe."""

    def __init__(self, console: Console, total: int) -> None:
        self._console, self._total = console, total
        self._started = time.monotonic()
        self._counts: Counter[str] = Counter()
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> "View":
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def refresh(self, running: Iterable[Running]) -> None:
        """Redraw the table."""
        if self._live:
            self._live.update(self._table(list(running)), refresh=True)

    def begins(self, stage: Running) -> None:
        """Report that a stage's command starts."""
        stage.state = ""
        if not self._live:
            self._say(f"{stage.name}: begins, {stage.cores} core{'s' * (stage.cores != 1)}")

    def waits(self, stage: Running, why: str) -> None:
        """Report, once, that a stage waits for another DVC process."""
        if stage.state != why:
            stage.state = why
            self._say(f"{stage.name}: waits, another DVC process is running: {escape(why)}")

    def ends(self, stage: Running, outcome: str, why: str = "") -> None:
        """Report the outcome of a stage."""
        self._counts[outcome] += 1
        if not self._live or outcome != "unchanged":
            reason = f": {escape(why)}" if why else ""
            self._say(f"{stage.name}: {OUTCOMES[outcome]}, {spell_seconds(stage.seconds)}{reason}")

    def say(self, text: str) -> None:
        """Print a line above the table."""
        self._console.print(text, soft_wrap=True, highlight=False)

    def _say(self, text: str) -> None:
        done = self._counts.total()
        self.say(f"{time.strftime('%H:%M:%S')}  {done:{len(str(self._total))}}/{self._total}  {text}")

    def _table(self, running: list[Running]) -> Group:
        done = self._counts.total()
        head = Table.grid(padding=(0, 2))
        counts = f"{done} of {self._total} done, {len(running)} running, {self._total - done - len(running)} waiting"
        elapsed = spell_seconds(time.monotonic() - self._started)
        head.add_row(ProgressBar(self._total, done, width=30), counts, elapsed)
        rows = Table.grid(padding=(0, 2), expand=True)
        rows.add_column(no_wrap=True)
        rows.add_column(justify="right", no_wrap=True)
        rows.add_column(ratio=1, no_wrap=True, overflow="ellipsis", style="dim")
        for stage in running:
            rows.add_row(stage.name, spell_seconds(stage.seconds), escape(stage.state or last_line(stage.log_path)))
        return Group(head, rows)  # rows that do not fit onto the screen are cut off


def spell_seconds(seconds: float) -> str:
    """Return a duration as text: 3.2 s, 48 s, 2 min 05 s, 3 h 10 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def last_line(path: Path) -> str:
    """Return the last non-empty line of a log; a carriage return starts a line too."""
    return next(iter(tail(path, 1)), "")


def tail(path: Path, count: int) -> list[str]:
    """Return the last lines of a log, within its last kilobytes."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL_BYTES * count))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.replace("\r", "\n").split("\n") if line.strip()][-count:]
