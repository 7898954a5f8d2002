"""Shards on a real Dask scheduler and worker processes, all on loopback: the same bytes, whatever happens to a worker."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import REPOSITORY, make_clips, make_wav_corpus
from shard_functions import (
    die_at_7,
    drawn_for_ten_results,
    find_an_artifact_damaged,
    library_threads,
    nap,
    refuse,
    run_out_of_memory_at_7,
    square,
    where,
)
from test_spectrogram_stage import PARAMS as SPECTROGRAM

from pipeline.errors import ArtifactError, SonolexError
from pipeline.execution.code import project_sources
from pipeline.execution.dask_worker import Site, compute_at, differences, worker_version
from pipeline.execution.executors import ExecutionParams, run_shards
from pipeline.execution.shards import shard_name
from pipeline.execution.stage import StageReport
from pipeline.params import validate_params
from pipeline.spectrogram.settings import SpectrogramParams
from stages.spectrogram import run as run_spectrogram

Client = pytest.importorskip("distributed", reason="needs the extra `cluster`").Client

SECONDS_TO_START = 60
_ROOT = ("pipeline.execution.shards", "shard_name")
CODE = (_ROOT, worker_version(project_sources(), _ROOT))


@dataclass
class Cluster:
    """A scheduler and its workers, as processes."""

    folder: Path  # where the processes run
    environment: dict[str, str]
    scheduler: subprocess.Popen[bytes]
    address: str
    processes: list[subprocess.Popen[bytes]]  # of all, the scheduler's first

    @property
    def workers(self) -> list[subprocess.Popen[bytes]]:
        return self.processes[1:]

    def add_worker(self, *options: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start a worker without waiting for it."""
        command = [sys.executable, "-m", "distributed.cli.dask_worker", self.address, "--host", "127.0.0.1"]
        with (self.folder / "workers.log").open("ab") as log:
            worker = subprocess.Popen(
                [*command, "--no-dashboard", *(options or ("--nthreads", "1", "--no-nanny"))],
                cwd=self.folder,
                env=self.environment | environment,
                stderr=log,
            )
        self.processes.append(worker)
        return worker

    def wait_for_workers(self, count: int) -> None:
        with Client(self.address) as client:
            client.wait_for_workers(count, SECONDS_TO_START)


@contextlib.contextmanager
def start_cluster(folder: Path, workers: int = 2, **environment: str) -> Iterator[Cluster]:
    """Run a scheduler and workers on one thread each, without nannies, in a folder of their own; end them afterwards."""
    folder.mkdir()
    path = folder / "scheduler.json"
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests'}"} | environment
    options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--no-show", "--scheduler-file", str(path)]
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", *options]
    with (folder / "scheduler.log").open("wb") as log:
        scheduler = subprocess.Popen(command, cwd=folder, env=environment, stderr=log)
    processes = [scheduler]
    try:
        deadline = time.monotonic() + SECONDS_TO_START
        while not path.exists():
            assert scheduler.poll() is None, (folder / "scheduler.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.1)  # written in one go, but not by a rename
        cluster = Cluster(folder, environment, scheduler, json.loads(path.read_text())["address"], processes)
        for _ in range(workers):
            cluster.add_worker()
        if workers:
            cluster.wait_for_workers(workers)
        yield cluster
    finally:
        for process in reversed(processes):
            process.kill()  # a worker ends with its nanny
        for process in processes:
            process.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "2")
    with start_cluster(tmp_path_factory.mktemp("cluster") / "home", **threads) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(
    address: str, compute: Callable[[Any], Any], specs: Iterable[Any], *, report: StageReport | None = None
) -> Iterator[Any]:
    return run_shards(
        compute,
        specs,
        execution=ExecutionParams(executor="dask", workers=0, scheduler=address, memo=Path("memo")),
        report=report or StageReport("test"),
        label="test",
        total_clips=0,
        num_clips=lambda _: 1,
        worthwhile=1,
    )


def test_every_shard_is_computed_once_in_the_folder_of_the_caller(cluster: Cluster, tmp_path: Path) -> None:
    report = StageReport("test")
    assert sorted(run(cluster.address, square, iter(range(40)), report=report)) == [n * n for n in range(40)]
    assert report.executor == f"dask {cluster.address}"
    assert report.workers == 2
    assert report.incidents == []
    assert report.worker_memory > 10_000_000
    found = set(run(cluster.address, where, range(8)))
    assert {folder for folder, _ in found} == {str(tmp_path)}
    assert {pid for _, pid in found} <= {worker.pid for worker in cluster.workers}
    assert not list(Path(".sonolex").iterdir())


def test_shards_are_drawn_a_few_at_a_time(cluster: Cluster) -> None:
    assert drawn_for_ten_results(partial(run, cluster.address, square)) <= 10 + 2 * 2 + 2


def test_shards_compute_on_one_thread(cluster: Cluster) -> None:
    assert list(run(cluster.address, library_threads, [1, 2])) == [[1], [1]]


def test_an_error_of_a_shard_reaches_the_caller(cluster: Cluster) -> None:
    with pytest.raises(SonolexError, match="no 3"):
        list(run(cluster.address, refuse, [3]))
    with pytest.raises(ArtifactError, match="expected all, found half"):
        list(run(cluster.address, find_an_artifact_damaged, [3]))
    with pytest.raises(FileNotFoundError, match="No such file or directory: 'gone'") as caught:
        list(run(cluster.address, os.stat, ["gone"]))  # an OSError of a shard is none of the connection
    assert caught.value.filename == "gone"


def test_a_shard_that_memory_is_too_short_for_is_named_after_all_others_are_done(cluster: Cluster) -> None:
    results = []
    with pytest.raises(SonolexError, match=r"(?s)expected every shard .*found 1 .*more memory.*\n  7$"):
        results.extend(run(cluster.address, run_out_of_memory_at_7, range(20)))
    assert sorted(results) == [number for number in range(20) if number != 7]


def test_no_shards_need_no_cluster() -> None:
    assert list(run("tcp://127.0.0.1:9", square, [])) == []


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.execution.dask_cluster._SECONDS_TO_CONNECT", 0.5)
    with pytest.raises(
        SonolexError, match=r"expected a Dask scheduler at tcp://127\.0\.0\.1:9, found none.*`dask scheduler`"
    ):
        list(run("tcp://127.0.0.1:9", square, [1]))


def test_without_distributed_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(SonolexError, match=r"expected the package `distributed`.*\.\[cluster\]"):
        list(run("tcp://127.0.0.1:9", square, [1]))


def test_a_worker_that_sees_no_shared_file_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.execution.dask_worker._SECONDS_TO_APPEAR", 0.2)
    (tmp_path / "here").touch()
    assert differences(Site(tmp_path, (Path("here"),), *CODE)) == []
    found = differences(Site(tmp_path, (Path("here"), Path("gone")), *CODE))
    assert found == [f"{tmp_path / 'gone'}: expected to see it, found none: no file system is shared"]
    with pytest.raises(SonolexError, match=r"worker .*, process \d+:\n.*gone: expected to see it"):
        compute_at(Site(tmp_path, (Path("gone"),), *CODE), b"")


@pytest.mark.slow
def test_a_worker_with_other_code_or_none_is_refused_by_name(tmp_path: Path) -> None:
    other, none = tmp_path / "other", tmp_path / "none"
    shutil.copytree(REPOSITORY / "pipeline", other / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    edited = other / "pipeline" / "execution" / "shards.py"
    edited.write_text(edited.read_text().replace("return digest.hexdigest()[:16]", "return digest.hexdigest()[:15]"))
    (none / "pipeline").mkdir(parents=True)
    (none / "pipeline" / "__init__.py").write_text("raise ModuleNotFoundError('No module', name='pipeline')")
    # The scheduler has none either: it only passes on.
    with start_cluster(tmp_path / "home", workers=0, PYTHONPATH=str(none)) as cluster:
        for folder in (other, none):
            cluster.add_worker(PYTHONPATH=f"{folder}{os.pathsep}{REPOSITORY / 'tests'}")
        cluster.wait_for_workers(2)
        with pytest.raises(SonolexError) as caught:
            list(run(cluster.address, shard_name, [["a"], ["b"]]))
        _, *lines = str(caught.value).splitlines()
        assert len(lines) == 2
        expected = r"expected code \w{16} behind pipeline\.execution\.shards\.shard_name, as in .*, found \w{16} of "
        assert any(re.search(f"{expected}{other} in memory: restart", x) for x in lines)
        assert any("expected the code of Sonolex, found no module pipeline" in x for x in lines)
        assert all(x.startswith("  tcp://127.0.0.1:") for x in lines)
        for worker in cluster.workers:
            worker.terminate()
            worker.wait()
        cluster.add_worker(PYTHONPATH=f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests'}")
        cluster.wait_for_workers(1)
        assert len(list(run(cluster.address, shard_name, [["a"], ["b"]]))) == 2
        cluster.add_worker(PYTHONPATH=str(none))  # while a run goes on
        with pytest.raises(SonolexError, match="a worker that joined: expected the code of Sonolex, found no module"):
            list(run(cluster.address, nap, range(999)))


def test_other_versions_are_named(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = Client.get_versions

    def other_versions(self: Any, **options: Any) -> dict[str, Any]:
        found = versions(self, **options)
        next(iter(found["workers"].values()))["packages"]["soxr"] = "0.1"
        found["scheduler"]["host"]["python"] = "3.9.1.final.0"
        return found

    monkeypatch.setattr(Client, "get_versions", other_versions)
    with pytest.raises(SonolexError) as caught:
        list(run(cluster.address, square, range(9)))
    message, worker, scheduler = str(caught.value).splitlines()
    assert "start scheduler and workers in the environment of this process" in message
    assert re.fullmatch(r"  worker tcp://.*: soxr: expected \d.*, found 0\.1", worker)
    assert re.fullmatch(r"  the scheduler: python: expected 3\.\d+, found 3\.9", scheduler)


@pytest.mark.slow
def test_shards_take_turns_in_a_worker_of_several_threads(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with start_cluster(tmp_path / "home", workers=0) as cluster:
        cluster.add_worker("--nthreads", "4", "--no-nanny")
        cluster.wait_for_workers(1)
        spans = sorted(run(cluster.address, nap, range(4)))
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    assert "1 of 1 workers have several threads" in caplog.text


@pytest.mark.slow
def test_a_worker_killed_midway_changes_no_byte_and_stands_in_the_report(tmp_path: Path) -> None:
    """The requirement: a real scheduler, two workers, one of them SIGKILLed while the stage runs."""
    root = make_wav_corpus(tmp_path / "corpus", clips_per_class=50)  # 300 clips
    sources = sorted(str(path.relative_to(root)) for path in (root / "audio").iterdir())
    clips = make_clips(tmp_path / "clips.parquet", root, sources)
    params = validate_params(SpectrogramParams, SPECTROGRAM, "spectrogram")
    corpus: Any = SimpleNamespace(root=Path("corpus"), max_bad_fraction=0.0, max_duration=5.0)  # a relative path
    local = ExecutionParams(executor="local", workers=1, scheduler="", memo=Path("local memo"))
    run_spectrogram(params, corpus, local, clips, Path("local/spectrogram"))
    done_at_kill = []

    over = threading.Event()

    def kill(worker: subprocess.Popen[bytes]) -> None:
        while len(done_at_kill) < 5 and not over.wait(0.005):
            with contextlib.suppress(FileNotFoundError):  # shards appear under other names first
                done_at_kill[:] = tmp_path.glob("dask memo/*/*/[!.]*/entry.json")
        worker.kill()

    with start_cluster(tmp_path / "home") as cluster:
        killer = threading.Thread(target=kill, args=[cluster.workers[0]])
        killer.start()
        execution = ExecutionParams(executor="dask", workers=0, scheduler=cluster.address, memo=Path("dask memo"))
        try:
            run_spectrogram(params, corpus, execution, clips, Path("dask/spectrogram"))
        finally:
            over.set()
            killer.join()
        assert [worker.poll() for worker in cluster.workers] == [-signal.SIGKILL, None]
    report = json.loads(Path("results/stages/spectrogram.json").read_text())
    assert len(done_at_kill) < report["shards"] / 2
    assert len(report["incidents"]) == 1
    assert re.fullmatch(r"1 worker was lost; [1-9]\d* shards? (was|were) run again", report["incidents"][0])
    assert report["executor"] == f"dask {cluster.address}, 2 workers"
    assert report["decoded"] == 300
    assert _bytes(Path("dask/spectrogram")) == _bytes(Path("local/spectrogram"))


@pytest.mark.slow
def test_a_run_waits_for_a_worker_when_all_are_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.execution.dask_cluster._SECONDS_BETWEEN_LOOKS", 0.2)
    report = StageReport("test")
    with start_cluster(tmp_path / "home", workers=1) as cluster:
        results = run(cluster.address, nap, range(8), report=report)
        found = [next(results)]
        cluster.workers[0].kill()
        timer = threading.Timer(2.0, cluster.add_worker)
        timer.start()
        found += results
        timer.join()
    assert len(found) == 8
    assert "the cluster has no worker; waiting for one" in caplog.text
    assert report.incidents[0].startswith("1 worker was lost; ")


@pytest.mark.slow
def test_a_shard_that_kills_every_worker_is_named_after_all_others_are_done(tmp_path: Path) -> None:
    report, results = StageReport("test"), []
    with start_cluster(tmp_path / "home", workers=0, DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="0") as cluster:
        for _ in range(2):
            cluster.add_worker("--nthreads", "1", "--nanny")  # which starts a new worker for one that died
        cluster.wait_for_workers(2)
        with pytest.raises(SonolexError, match=r"(?s)found 1 that took their worker with them.*\n  7$"):
            results.extend(run(cluster.address, die_at_7, range(20), report=report))
    assert sorted(results) == [number for number in range(20) if number != 7]
    assert report.incidents[0].startswith("2 workers were lost; ")


@pytest.mark.slow
def test_a_lost_scheduler_is_an_error(tmp_path: Path) -> None:
    with start_cluster(tmp_path / "home") as cluster:
        results = run(cluster.address, nap, range(99))
        next(results)
        cluster.scheduler.kill()
        with pytest.raises(
            SonolexError, match="expected the Dask scheduler to stay until the last shard, found it gone"
        ):
            list(results)


def _bytes(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}
