"""Dask executor: runs shards on the workers of a cluster; docs/scaling.md says how to start one.

Dask's scheduler assigns shards to workers and reassigns those of lost workers. This module bounds the shards in flight per
worker, checks that workers see the same files and code, and counts losses. `distributed` is imported only when a cluster is
used, so that everything else works without the extra `cluster`.
"""

import contextlib
import logging
import pickle
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import CancelledError
from dataclasses import fields, is_dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pipeline.errors import SonolexError
from pipeline.execution.code import project_sources
from pipeline.execution.housekeeping import MARK_SUFFIX
from pipeline.execution.stage import StageReport
from pipeline.execution.worker_failures import WorkerFailures

if TYPE_CHECKING:
    from distributed import Client, Future

    from pipeline.execution.dask_worker import Answer, Site

log = logging.getLogger(__name__)

S = TypeVar("S")
R = TypeVar("R")

_AHEAD = 2  # shards in flight per worker: one computed and one waiting
_SECONDS_TO_CONNECT = 10.0
_SECONDS_BETWEEN_LOOKS = 5.0  # between checks of a cluster without news
_SECONDS_BETWEEN_LINES = 60.0  # between log lines about a cluster without workers
_MOST_SUSPECTS = 8  # shards that lost their workers; at this number they are tried alone before others are sent
_SCHEDULER_PACKAGES = ("dask", "distributed")  # messages depend on them
_WORKER_PACKAGES = (
    *_SCHEDULER_PACKAGES,
    "av",
    "numpy",
    "pyarrow",
    "soundfile",
    "soxr",
    "zarr",
)  # these determine the bytes


def run_on_cluster(
    compute: Callable[[S], R], specs: Iterator[S], scheduler: str, report: StageReport, failures: WorkerFailures
) -> Generator[tuple[S, R], None, None]:
    """Yield every spec with its result, computed by the workers of the Dask scheduler at this address.

    Shards of a lost worker are run again by Dask; those for which it has lost too many (its setting `allowed-failures`)
    are tried once more alone, after the others, and then given up, see `WorkerFailures`. Waits as long as there are no
    workers. An exception of `compute` is raised once the shards in flight are done and yielded. Raises SonolexError where
    the scheduler cannot be reached or is lost, and where workers differ from this process in files, code or packages.
    """
    first = list(islice(specs, 1))
    if not first:
        return
    with _connected(scheduler) as client, _site(compute, first[0]) as site:
        from distributed.comm import CommClosedError

        run = _Run(_Cluster(client, failures), compute, site, report)
        try:
            run.cluster.wait_for_workers()
            _require_same_packages(client)
            _require_fitting(client, site)
            yield from run.results(chain(first, specs))
        # A client whose scheduler is gone or was replaced at the same address has lost all shards in flight.
        except (CancelledError, CommClosedError):
            raise SonolexError(
                f"{failures.label}: expected the Dask scheduler to stay until the last shard, found it gone or restarted; "
                "start it again, set execution.scheduler to its address, and run the stage again"
            ) from None


@contextlib.contextmanager
def _connected(scheduler: str) -> Iterator["Client"]:
    try:
        from distributed import Client
    except ModuleNotFoundError:
        raise SonolexError(
            "execution.executor: expected the package `distributed` for dask, found none; install it with "
            "`pip install -e '.[cluster]'`, or set execution.executor to local"
        ) from None
    logging.getLogger("distributed").setLevel(logging.ERROR)  # this module reports what matters
    try:
        client = Client(scheduler, timeout=_SECONDS_TO_CONNECT)
    except (OSError, ValueError) as error:
        raise SonolexError(
            f"execution.scheduler: expected a Dask scheduler at {scheduler}, found none that answers within "
            f"{_SECONDS_TO_CONNECT:.0f} s ({error}); start one with `dask scheduler` and set the address that it prints"
        ) from None
    try:
        yield client
    finally:
        client.close()


@contextlib.contextmanager
def _site(compute: Callable[..., object], spec: object) -> Iterator["Site"]:
    """Yield the `Site` that workers must match: this folder, a marker file in it, the files of a shard, and its code."""
    from pipeline.execution.dask_worker import Site, worker_version

    named = [getattr(spec, field.name) for field in fields(spec)] if is_dataclass(spec) else []
    paths = [value for value in named if isinstance(value, Path) and value.exists()]
    mark = Path(".sonolex", f"{uuid.uuid4().hex}{MARK_SUFFIX}")
    mark.parent.mkdir(exist_ok=True)
    mark.touch()
    try:
        root = (compute.__module__, compute.__qualname__)
        yield Site(Path.cwd(), (mark, *paths), root, worker_version(project_sources(), root))
    finally:
        mark.unlink(missing_ok=True)


def _require_same_packages(client: "Client") -> None:
    """Raise SonolexError, naming every difference, unless scheduler and workers run the versions that this process does."""
    versions = client.get_versions(packages=list(_WORKER_PACKAGES))
    here = _of_interest(versions["client"], _WORKER_PACKAGES)
    places = {f"worker {name}": _of_interest(found, _WORKER_PACKAGES) for name, found in versions["workers"].items()}
    places["the scheduler"] = _of_interest(versions["scheduler"], _SCHEDULER_PACKAGES)
    mistakes = [
        f"{place}: {name}: expected {here[name]}, found {version or 'none'}"
        for place, found in places.items()
        for name, version in found.items()
        if version != here[name]
    ]
    if mistakes:
        raise SonolexError(
            "\n  ".join(
                ["execution.scheduler: start scheduler and workers in the environment of this process:", *mistakes]
            )
        )


def _of_interest(versions: dict[str, Any], packages: tuple[str, ...]) -> dict[str, str | None]:
    python = ".".join(versions["host"]["python"].split(".")[:2])
    return {"python": python} | {name: versions["packages"].get(name) for name in packages}


def _require_fitting(client: "Client", site: "Site") -> None:
    """Raise SonolexError, naming every worker and what it lacks, unless all see the files and have the code."""
    from pipeline.execution.dask_worker import differences

    answers = client.run(_by_value(), _pack(differences, site), on_error="return")
    mistakes = [f"{worker}: {sentence}" for worker, answer in answers.items() for sentence in _sentences(answer)]
    if mistakes:
        raise SonolexError("\n  ".join(["execution.scheduler: workers cannot compute for this process:", *mistakes]))


def _sentences(answer: list[str] | BaseException) -> list[str]:
    if isinstance(answer, ModuleNotFoundError):
        return [
            f"expected the code of Sonolex, found no module {answer.name}: start workers in the environment of this "
            f"process, or with PYTHONPATH={Path.cwd()}"
        ]
    if isinstance(answer, BaseException):
        return [f"expected an answer, found {type(answer).__name__}: {answer}"]
    return answer


def _pack(function: Callable[..., object], *arguments: object) -> bytes:
    return pickle.dumps((function, arguments))


def _by_value() -> Callable[[bytes], object]:
    """Return the function that workers are sent: it calls what was packed.

    A local function is pickled with its code: a scheduler can pass it on without Sonolex's code, and a worker without that
    code fails in the call, where the error can be reported, and not while it reads its messages.
    """

    def call(packed: bytes) -> object:
        import pickle

        function, arguments = pickle.loads(packed)  # noqa: S301 - from the process that the worker serves
        return function(*arguments)

    return call


class _Cluster:
    """Current workers, from the scheduler's events, and counts of lost workers and their shards."""

    def __init__(self, client: "Client", failures: WorkerFailures) -> None:
        self.client, self.failures = client, failures
        self.in_flight: set[str] = set()  # keys of this run, added and removed by `_Run`
        self.workers: set[str] = set()
        client.subscribe_topic("all", self._hear)  # on the client's own thread
        self.workers |= set(client.nthreads())
        self._last_line = -_SECONDS_BETWEEN_LINES

    def wait_for_workers(self) -> None:
        """Wait until there is a worker. Raises CancelledError when the scheduler is lost."""
        while not self.workers:
            if self.client.status != "running":
                raise CancelledError
            self.warn_without_workers()
            time.sleep(0.2)
        several = sum(threads > 1 for threads in self.client.nthreads().values())
        if several:
            log.warning(
                "%s: %d of %d workers have several threads and will use one: start them with --nthreads 1",
                *(self.failures.label, several, len(self.workers)),
            )

    def warn_without_workers(self) -> None:
        """Log, at intervals, that the cluster has no worker."""
        if not self.workers and time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            log.warning("%s: the cluster has no worker; waiting for one", self.failures.label)

    def _hear(self, event: tuple[float, dict[str, Any]]) -> None:
        _, message = event
        if message.get("action") == "add-worker":
            self.workers.add(message["worker"])
        elif message.get("action") == "remove-worker":
            self.workers.discard(message["worker"])
            keys = set(message["processing-tasks"]) | set(message["lost-computed-tasks"])
            lost = len(keys & self.in_flight)
            if lost or not message.get("expected", False):
                self.failures.workers += 1
                self.failures.shards += lost
                log.warning("%s: lost worker %s with %d shards in flight", self.failures.label, message["worker"], lost)


class _Run(Generic[S, R]):
    """One run of shards on a cluster."""

    def __init__(self, cluster: _Cluster, compute: Callable[[S], R], site: "Site", report: StageReport) -> None:
        from pipeline.execution.dask_worker import compute_at

        self.cluster, self.compute, self.site, self.report = cluster, compute, site, report
        self._compute_at = compute_at
        self._call = _by_value()
        self._name = f"{cluster.failures.label}-{uuid.uuid4().hex[:8]}"  # keys are never shared between runs
        self._sent = 0
        self._running: dict[Future[Answer], S] = {}
        self._suspects: list[S] = []  # shards whose workers were lost too often
        self._failure: BaseException | None = None  # of `compute`

    def results(self, specs: Iterator[S]) -> Generator[tuple[S, R], None, None]:
        """Yield every spec with its result."""
        try:
            while True:
                yield from self._beside_each_other(specs)
                if not self._suspects:
                    return
                yield from self._alone()
        finally:
            self._settle()

    def _beside_each_other(self, specs: Iterator[S]) -> Generator[tuple[S, R], None, None]:
        """Run specs until none is left, or until there are many suspects."""
        while True:
            if self._failure is None and len(self._suspects) < _MOST_SUSPECTS:
                workers = len(self.cluster.workers)
                self.report.workers = max(self.report.workers, workers)
                room = _AHEAD * max(1, workers) - len(self._running)
                for spec in islice(specs, max(0, room)):
                    self._send(spec)
            if not self._running:
                break
            yield from self._finished()
        if self._failure is not None:
            raise self._failure

    def _alone(self) -> Generator[tuple[S, R], None, None]:
        suspects, self._suspects = self._suspects, []
        for spec in suspects:
            self._send(spec)
            while self._running:
                yield from self._finished()
            if self._failure is not None:
                raise self._failure
            if self._suspects:
                self.cluster.failures.give_up(self._suspects.pop())

    def _send(self, spec: S) -> None:
        job = pickle.dumps((self.compute, spec))
        key = f"{self._name}-{self._sent}"
        self._sent += 1
        self.cluster.in_flight.add(key)
        packed = _pack(self._compute_at, self.site, job)
        self._running[self.cluster.client.submit(self._call, packed, key=key, pure=False)] = spec

    def _finished(self) -> Generator[tuple[S, R], None, None]:
        """Wait a while for shards to finish, and yield those that have a result."""
        from distributed import KilledWorker

        for future in self._done():
            spec = self._running[future]
            if future.status == "finished":
                try:
                    answer = future.result(timeout=_SECONDS_BETWEEN_LOOKS)
                except TimeoutError:  # its worker was lost with the result: Dask runs it again
                    continue
                self.report.worker_memory = max(self.report.worker_memory, answer.memory)
                yield spec, answer.result
            elif isinstance(error := future.exception(), KilledWorker | MemoryError):
                self._suspects.append(spec)
            elif self._failure is None:
                joined = isinstance(error, ModuleNotFoundError)  # workers present at the start have been checked
                self._failure = SonolexError(f"a worker that joined: {_sentences(error)[0]}") if joined else error
            del self._running[future]
            self.cluster.in_flight.discard(future.key)

    def _done(self) -> list["Future[Answer]"]:
        from distributed import wait

        try:
            done = wait(list(self._running), timeout=_SECONDS_BETWEEN_LOOKS, return_when="FIRST_COMPLETED").done
        except TimeoutError:
            self.cluster.warn_without_workers()
            return []
        except CancelledError:
            self._running.clear()  # nothing to wait for
            raise
        return [future for future in done if future.status in ("finished", "error")]

    def _settle(self) -> None:
        """Wait for shards in flight, so that no worker writes into a folder that is about to be removed."""
        if self._running:
            log.info("%s: waiting for %d shards in flight", self.cluster.failures.label, len(self._running))
        while self._running and self.cluster.workers:
            for future in self._done():
                del self._running[future]
