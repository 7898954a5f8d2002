"""`sonolex repro`: `dvc repro` with stages in parallel, at most one per core.

The graph comes from DVC's index, the order from graphlib, and DVC itself brings each stage up to date, under its own locks,
in a forked process (tools/repro_worker.py). dvc.lock, the run cache and the cache are therefore the same as after `dvc
repro`, which has nothing left to do. A failed stage stops only its dependents.

Cores are divided among running stages: SONOLEX_CORES, and the variables of numeric libraries, limit the cores of a stage. A
stage that runs alone is not limited, as under `dvc repro`.
"""

import contextlib
import fcntl
import multiprocessing
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from heapq import heappop, heappush
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.progress import Tqdm
from dvc.repo import Repo
from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro
from dvc.stage import Stage
from rich.console import Console
from rich.markup import escape

from pipeline.errors import SonolexError
from pipeline.execution.threads import CORES_VARIABLE, THREAD_VARIABLES, num_cores
from tools.repro_view import OUTCOMES, Running, View, spell_seconds, tail
from tools.repro_worker import kill_others, parse_once, work

LOGS = Path(".sonolex/logs")

_FORK = multiprocessing.get_context("fork")
_REFRESH = 0.25  # seconds
_TAIL = 20  # lines shown of the output of a failed stage


@dataclass(frozen=True)
class Graph:
    """The stages that a run visits, in the order of `dvc repro`, and what each needs among them."""

    stages: dict[str, Stage]  # DVC's, by name
    needs: Mapping[str, frozenset[str]]

    def later(self, name: str) -> set[str]:
        """Return the names, in its dvc.yaml, of the stages after one."""
        stages = list(self.stages.values())[list(self.stages).index(name) + 1 :]
        return {stage.name for stage in stages if stage.path == self.stages[name].path and stage.cmd}

    def heights(self) -> dict[str, int]:
        """Return name -> length of the longest chain of dependents, for priorities."""
        heights = dict.fromkeys(self.stages, 0)
        for name in reversed(self.stages):
            for needed in self.needs[name]:
                heights[needed] = max(heights[needed], heights[name] + 1)
        return heights


@dataclass
class Result:
    """Result of a run."""

    outcomes: dict[str, str] = field(default_factory=dict)  # stage -> key of OUTCOMES
    left_out: list[str] = field(default_factory=list)
    busy_seconds: float = 0.0  # of all stages together
    signal: int = 0  # that stopped the run; 0 = none

    def named(self, outcome: str) -> list[str]:
        return [name for name, found in self.outcomes.items() if found == outcome]


def run(targets: Sequence[str], *, jobs: int | None, force: bool, dry: bool, console: Console) -> int:
    """Bring targets (by default everything) and their dependencies up to date; return the exit status."""
    parse_once()
    Tqdm.monitor_interval = 0  # otherwise it starts a thread, which makes forks unsafe
    try:
        with Repo(_wait_for_lock=True) as repo:
            if dry:
                for name in order(load_graph(repo, targets)):
                    console.print(escape(name), soft_wrap=True, highlight=False)
                return 0
            with _alone(Path(repo.tmp_dir) / "sonolex-repro.lock"):
                return _run(repo, targets, jobs or num_cores(), force, console)
    except DvcException as error:
        raise SonolexError(f"dvc: {error}") from None


def _run(repo: Repo, targets: Sequence[str], jobs: int, force: bool, console: Console) -> int:
    started = time.monotonic()
    graph = load_graph(repo, targets)
    repo.close()  # each process opens its databases again
    with View(console, len(graph.stages)) as view:
        result = _Run(repo, graph, jobs, force, view).go()
    return _sum_up(result, time.monotonic() - started, Path(repo.root_dir) / LOGS, console)


def load_graph(repo: Repo, targets: Sequence[str]) -> Graph:
    """Return the targets with their dependencies, in DVC's order; frozen stages have no dependencies."""
    with repo.lock:
        graph = get_active_graph(repo.index.graph)
        stages = plan_repro(graph, collect_stages(repo, targets or ["dvc.yaml"]))
    return Graph(
        {stage.addressing: stage for stage in stages},
        {stage.addressing: frozenset(needed.addressing for needed in graph.successors(stage)) for stage in stages},
    )


def order(graph: Graph) -> Iterator[str]:
    """Yield the stages in the order of a sequential run."""
    ready = _Ready(graph)
    while ready:
        name = ready.pop()
        yield name
        ready.done(name)


class _Ready:
    """Priority queue of stages whose inputs are ready, by the length of their chains of dependents."""

    def __init__(self, graph: Graph) -> None:
        self._sorter = TopologicalSorter(graph.needs)
        self._sorter.prepare()
        heights = graph.heights()
        self._ranks = {name: (-heights[name], number) for number, name in enumerate(graph.stages)}
        self._heap: list[tuple[tuple[int, int], str]] = []
        self._fill()

    def __len__(self) -> int:
        return len(self._heap)

    def pop(self) -> str:
        return heappop(self._heap)[1]

    def done(self, name: str) -> None:
        self._sorter.done(name)
        self._fill()

    def _fill(self) -> None:
        for name in self._sorter.get_ready():
            heappush(self._heap, (self._ranks[name], name))


class _Run:
    """One run of a graph: a process per stage, and the event loop that starts and monitors them."""

    def __init__(self, repo: Repo, graph: Graph, jobs: int, force: bool, view: View) -> None:
        self._graph, self._jobs, self._force, self._view = graph, jobs, force, view
        self._logs = Path(repo.root_dir) / LOGS
        self._ready = _Ready(graph)
        self._at_work: dict[Connection, tuple[Running, ForkProcess]] = {}
        self._result = Result()

    def go(self) -> Result:
        signals: list[int] = []
        numbers = (signal.SIGINT, signal.SIGTERM)
        handlers = {number: signal.signal(number, lambda number, _: signals.append(number)) for number in numbers}
        try:
            while self._at_work or (self._ready and not self._result.signal):
                while self._ready and len(self._at_work) < self._jobs and not self._result.signal:
                    self._start(self._ready.pop())
                self._view.refresh(running for running, _ in self._at_work.values())
                ready = wait(list(self._at_work), _REFRESH)
                for connection in [connection for connection in self._at_work if connection in ready]:
                    self._listen(connection)
                while signals:
                    self._stop(signals.pop(0))
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            for connection in self._at_work:  # processes end when their connection closes
                connection.close()
        self._result.left_out = [name for name in self._graph.stages if name not in self._result.outcomes]
        return self._result

    def _start(self, name: str) -> None:
        share, environment = share_of_cores(min(self._jobs, len(self._at_work) + 1 + len(self._ready)))
        running = Running(name, self._logs / _log_name(name), share)
        ours, theirs = _FORK.Pipe()
        arguments = (
            self._graph.stages[name],
            self._graph.later(name),
            theirs,
            [ours, *self._at_work],
            running.log_path,
            environment,
        )
        process = _FORK.Process(target=work, args=(*arguments, self._force), name=name)
        process.start()
        theirs.close()
        self._at_work[ours] = running, process

    def _listen(self, connection: Connection) -> None:
        """Handle a message of a stage's process: its progress, or its end."""
        running, process = self._at_work[connection]
        try:
            message, text = connection.recv()
        except (EOFError, OSError):
            process.join()
            message, text = "failed", f"its process ended without a message, {_spell_status(process.exitcode)}"
            kill_others(process.pid or 0)
        if message == "running":
            self._view.begins(running)
        elif message == "busy":
            self._view.waits(running, text)
        else:
            process.join()
            del self._at_work[connection]
            connection.close()
            self._result.outcomes[running.name] = message
            self._result.busy_seconds += running.seconds
            self._view.ends(running, message, text)
            if message in ("ran", "restored", "unchanged"):
                self._ready.done(running.name)

    def _stop(self, number: int) -> None:
        """Stop running stages: their commands are interrupted first, and killed on the second call."""
        if self._result.signal:
            for _, process in self._at_work.values():
                kill_others(process.pid or 0)
            return
        self._result.signal = number
        self._view.say(
            f"{signal.Signals(number).name}: stopping {len(self._at_work)} running stages; send it again to kill them"
        )
        for connection in self._at_work:
            with contextlib.suppress(OSError):
                connection.send("stop")


def share_of_cores(stages: int) -> tuple[int, dict[str, str]]:
    """Return the number of cores of one of several stages, and the environment variables that limit it to them."""
    cores = num_cores()
    share = max(1, cores // stages)
    if share >= cores:
        return share, {}
    found = {name: os.environ.get(name, "") for name in (CORES_VARIABLE, *THREAD_VARIABLES)}
    return share, {name: str(share) for name, text in found.items() if not text.isdigit() or int(text) > share}


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock against another `sonolex repro` of this repository; the kernel releases it when a process dies."""
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise SonolexError(
                f"{path}: expected no other `sonolex repro` in this repository, found process {file.read() or 'unknown'} "
                "at work; wait for it, or stop it"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _sum_up(result: Result, seconds: float, logs: Path, console: Console) -> int:
    """Print a summary of the stages, with the end of the output of failed ones; return the exit status."""
    for name in result.named("failed"):
        path = logs / _log_name(name)
        console.print(
            f"[red]{escape(name)} failed[/]; the end of its output, {escape(os.path.relpath(path))}:", soft_wrap=True
        )
        for line in tail(path, _TAIL):
            console.print(f"    {line}", markup=False, highlight=False, soft_wrap=True)
    counts = Counter(result.outcomes.values())
    found = ", ".join(f"{counts[outcome]} {text}" for outcome, text in OUTCOMES.items() if counts[outcome])
    at_once = f", {result.busy_seconds / seconds:.1f} at a time" if result.busy_seconds > seconds else ""
    line = f"{len(result.outcomes)} stages in {spell_seconds(seconds)}{at_once}: {found}"
    console.print(line, soft_wrap=True, highlight=False)
    if result.left_out and result.signal:
        console.print(f"left out, since the run was stopped: {len(result.left_out)} stages", highlight=False)
    elif result.left_out:
        names, failed = ", ".join(result.left_out), ", ".join(result.named("failed"))
        console.print(escape(f"left out, since they need {failed}: {names}"), soft_wrap=True, highlight=False)
    if result.signal:
        return 128 + result.signal
    return 1 if result.named("failed") else 0


def _log_name(stage: str) -> str:
    return re.sub(r"[^\w.@=-]", "_", stage) + ".log"


def _spell_status(code: int | None) -> str:
    return signal.Signals(-code).name if code and code < 0 else f"exit status {code}"
