"""Running shards and stages: every result once, on one process or two, and errors as messages."""

import json
import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from shard_functions import (
    die_at_7,
    die_once,
    drawn_for_ten_results,
    find_an_artifact_damaged,
    leave,
    library_threads,
    refuse,
    refuse_at_0,
    run_out_of_memory_at_7,
    square,
    threads,
)

from pipeline.errors import ArtifactError, ParamsError, SonolexError
from pipeline.execution.executors import ExecutionParams, run_shards
from pipeline.execution.stage import StageReport, start_logging, training_seconds
from pipeline.execution.threads import num_threads
from pipeline.params import validate_params


def run(
    compute: Callable[[Any], Any],
    specs: Iterable[Any],
    *,
    workers: int = 2,
    report: StageReport | None = None,
    total_clips: int = 0,
    num_clips: Callable[[Any], int] = lambda _: 1,
    worthwhile: int = 9,
) -> Iterator[Any]:
    return run_shards(
        compute,
        specs,
        execution=ExecutionParams(executor="local", workers=workers, scheduler="", memo=Path("memo")),
        report=report or StageReport("test"),
        label="test",
        total_clips=total_clips,
        num_clips=num_clips,
        worthwhile=worthwhile,
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_every_shard_is_computed_once(workers: int) -> None:
    report = StageReport("test")
    numbers = list(range(23))
    assert sorted(run(square, iter(numbers), workers=workers, report=report)) == [n * n for n in numbers]
    assert (report.executor, report.workers, report.incidents) == ("local", workers, [])


def test_no_shards_give_no_results() -> None:
    assert list(run(square, [])) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_shards_are_drawn_a_few_at_a_time(workers: int) -> None:
    assert drawn_for_ten_results(partial(run, square, workers=workers)) <= 10 + 2 * workers


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_a_shard_reaches_the_caller(workers: int) -> None:
    with pytest.raises(SonolexError, match="no 7"):
        list(run(refuse, [7, 7], workers=workers))


def test_what_had_begun_when_a_shard_failed_is_yielded_before_its_error() -> None:
    results = []
    with pytest.raises(SonolexError, match="no 0"):
        results.extend(run(refuse_at_0, [1, 0, *range(2, 100)]))
    # `extend` keeps what it was given before the error.
    assert 1 in results
    assert len(results) < 10


def test_an_error_with_fields_of_its_own_travels() -> None:
    with pytest.raises(ArtifactError, match="data/spectrogram: shard: expected all, found half") as caught:
        list(run(find_an_artifact_damaged, [1, 2]))
    assert (caught.value.path, caught.value.stage) == (Path("data/spectrogram"), "spectrogram")


def test_workers_run_on_one_thread_and_the_caller_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    for found in run(threads, [1, 2]):
        assert found == "1"
        assert os.environ["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize("workers", [1, 2])
def test_shards_compute_on_one_thread_wherever_they_run(workers: int) -> None:
    with num_threads(2):
        assert library_threads(0) == [2]
        for found in run(library_threads, [1, 2], workers=workers):
            assert found == [1]
            assert library_threads(0) == [2]


def test_the_shards_of_a_killed_worker_are_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    report = StageReport("test")
    specs = [str(tmp_path / "died.flag"), *map(str, range(7))]
    with caplog.at_level(logging.WARNING):
        assert sum(run(die_once, specs, report=report)) == 8
    assert "a worker was killed (SIGKILL)" in caplog.text
    assert len(report.incidents) == 1
    assert report.incidents[0].startswith("1 worker was lost (SIGKILL); ")


def test_a_shard_that_kills_every_worker_is_named_after_all_others_are_done() -> None:
    report, results = StageReport("test"), []
    with pytest.raises(SonolexError, match=r"(?s)test: expected every shard .*found 1 .*SIGKILL.*memory.*\n  7$"):
        results.extend(run(die_at_7, range(20), report=report))
    assert sorted(results) == [number for number in range(20) if number != 7]
    assert "workers were lost (SIGKILL)" in report.incidents[0]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_shard_that_memory_is_too_short_for_is_named_after_all_others_are_done(workers: int) -> None:
    results = []
    with pytest.raises(SonolexError, match=r"(?s)found 1 .*MemoryError.*\n  7$"):
        results.extend(run(run_out_of_memory_at_7, range(20), workers=workers))
    assert sorted(results) == [number for number in range(20) if number != 7]


@pytest.mark.slow
def test_workers_that_always_end_end_the_run() -> None:
    with pytest.raises(SonolexError, match=r"(?s)found 3 .*exit status 3"):
        list(run(leave, range(100)))


def test_progress_away_from_a_terminal_is_log_lines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pipeline.execution.progress._SECONDS_BETWEEN_LINES", 0.0)
    with caplog.at_level(logging.INFO):
        list(run(square, [3, 4], workers=1, total_clips=7, num_clips=lambda number: number))
    assert [record.getMessage().rsplit(",", 1)[0] for record in caplog.records] == [
        "test: 3 of 7 clips",
        "test: 7 of 7 clips",
    ]


@pytest.mark.parametrize(
    ("workers", "num_shards", "worthwhile", "expected"), [(3, 2, 9, 2), (0, 10, 1, 1), (0, 10, 0, 1), (0, 0, 0, 1)]
)
def test_workers_started(workers: int, num_shards: int, worthwhile: int, expected: int) -> None:
    report = StageReport("test")
    assert (
        len(list(run(square, range(num_shards), workers=workers, worthwhile=worthwhile, report=report))) == num_shards
    )
    assert report.workers == expected


@pytest.mark.parametrize(
    ("executor", "scheduler", "message"),
    [
        ("dask", "", r"execution\.scheduler: expected the address of a Dask scheduler, such as tcp://host:8786"),
        ("dask", "host", r"execution\.scheduler: expected the address .*found 'host'"),
        ("local", "tcp://host:8786", r"execution\.scheduler: expected an empty string with executor local"),
        ("slurm", "", r"execution\.executor: .*'local' or 'dask'"),
    ],
)
def test_an_executor_and_its_scheduler_must_agree(executor: str, scheduler: str, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        validate_params(
            ExecutionParams, {"executor": executor, "workers": 0, "scheduler": scheduler, "memo": "memo"}, "execution"
        )


def test_the_report_holds_every_counter(tmp_path: Path) -> None:
    report = StageReport("spectrogram", clips=10, decoded=8, failed={"silent": 1, "empty": 1}, shards=2, workers=2)
    path = report.write(tmp_path / "deep" / "spectrogram.json")
    counters = json.loads(path.read_text())
    assert list(counters) == [
        "stage",
        "item",
        "clips",
        "decoded",
        "reused",
        "failed",
        "shards",
        "seconds",
        "clips_per_second",
        "peak_memory_bytes",
        "bytes_written",
        "executor",
        "incidents",
        "result",
        "timing",
    ]
    assert counters["failed"] == {"empty": 1, "silent": 1}
    assert counters["executor"] == "local, 2 workers"
    assert counters["peak_memory_bytes"] > 10_000_000
    assert counters["seconds"] >= 0


def test_training_is_timed_in_the_report_of_what_it_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    report = StageReport("train", "ast/1/0", result="digest")
    report.time_training(12.34567, [{"clips_per_second": 100.0, "input_fraction": 0.25}])
    path = report.write()
    assert path == Path("results/stages/train-ast-1-0.json")
    assert json.loads(path.read_text())["timing"]["epochs"] == [{"clips_per_second": 100.0, "input_fraction": 0.25}]
    assert training_seconds(path.parent, "ast/1/0", "digest") == 12.346
    assert training_seconds(path.parent, "ast/1/0", "another digest") is None  # of other settings
    assert training_seconds(path.parent, "ast-1/0", "digest") is None  # another run, whose file has this name
    assert training_seconds(path.parent, "ast/2/0", "digest") is None
    path.write_text("{}")
    assert training_seconds(path.parent, "ast/1/0", "digest") is None


def test_items_of_a_matrix_have_their_own_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert StageReport("split").write() == Path("results/stages/split.json")
    assert StageReport("train", "ast-3-0").write() == Path("results/stages/train-ast-3-0.json")


PROGRAM = '''
"""Greet somebody.

    name -> greeting
"""

import errno
import logging

from pipeline.errors import SonolexError
from pipeline.execution.stage import stage_main


def main(name: str) -> None:
    logging.getLogger(__name__).info("hello %s", name)
    if name == "nobody":
        raise SonolexError("name: expected somebody, found [nobody]")
    if name == "full":
        raise OSError(errno.ENOSPC, "No space left on device", "data/spectrogram")
    if name == "forbidden":
        raise PermissionError(errno.EACCES, "Permission denied", "memo/a")
    if name == "bug":
        raise ZeroDivisionError


if __name__ == "__main__":
    stage_main(main)
'''


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "greet.py"
    path.write_text(textwrap.dedent(PROGRAM))
    return path


def _run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, program, *arguments], capture_output=True, text=True, env=environment, check=False
    )


def test_a_stage_logs_to_stderr_and_shows_its_docstring_as_help(program: Path) -> None:
    result = _run(program, "context")
    assert result.returncode == 0
    assert result.stdout == ""
    assert result.stderr.rstrip().endswith("INFO     hello context")
    assert "name -> greeting" in _run(program, "--help").stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nobody", "error: name: expected somebody, found [nobody]\n"),
        ("full", "error: data/spectrogram: expected room on the disk, found it full; "),
        (
            "forbidden",
            "error: memo/a: expected permission to read and write it, found none (permission denied); give it to",
        ),
    ],
)
def test_a_mistake_is_a_message_and_status_1(program: Path, name: str, message: str) -> None:
    result = _run(program, name)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_bug_keeps_its_traceback(program: Path) -> None:
    result = _run(program, "bug")
    assert result.returncode != 0
    assert "Traceback" in result.stderr
    assert "ZeroDivisionError" in result.stderr


@pytest.mark.parametrize("time", ["first", "second"])
def test_logging_of_a_program_in_the_process_of_the_tests_ends_with_its_test(time: str) -> None:
    assert logging.getLogger().level == logging.WARNING  # the second time, what the first has left would be INFO
    start_logging()
