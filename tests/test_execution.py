"""Running shards and stages: every result once, on one process or two, and errors as messages."""

import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from conftest import REPOSITORY

from pipeline.errors import SonolexError
from pipeline.execution.local import ExecutionParams, run_shards
from pipeline.execution.stage import StageReport

# Functions for workers: spawned processes import this module anew.


def square(number: int) -> int:
    return number * number


def refuse(number: int) -> int:
    raise SonolexError(f"no {number}")


def threads(_: int) -> str | None:
    return os.environ.get("OMP_NUM_THREADS")


def die_once(flag: str) -> int:
    """Kill this worker, unless the flag says that one has died already."""
    path = Path(flag)
    if path.suffix == ".flag" and not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 1


def die(_: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 1


@pytest.mark.parametrize("workers", [1, 2])
def test_every_shard_is_computed_once(workers: int) -> None:
    numbers = list(range(23))
    assert sorted(run_shards(square, numbers, workers=workers, label="test")) == [n * n for n in numbers]


def test_no_shards_give_no_results() -> None:
    assert list(run_shards(square, [], workers=2, label="test")) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_a_shard_reaches_the_caller(workers: int) -> None:
    with pytest.raises(SonolexError, match="no 7"):
        list(run_shards(refuse, [7], workers=workers, label="test"))


def test_workers_run_on_one_thread_and_the_caller_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert list(run_shards(threads, [1], workers=2, label="test")) == ["1"]
    assert os.environ["OMP_NUM_THREADS"] == "3"


def test_the_shards_of_a_killed_worker_are_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    specs = [str(tmp_path / "died.flag"), *map(str, range(7))]
    with caplog.at_level(logging.WARNING):
        assert sum(run_shards(die_once, specs, workers=2, label="test")) == 8
    assert "a worker was killed" in caplog.text


def test_workers_that_are_killed_again_and_again_end_the_run() -> None:
    with pytest.raises(SonolexError, match=r"test: .*killed 3 times.*execution\.workers"):
        list(run_shards(die, [1, 2], workers=2, label="test"))


def test_progress_away_from_a_terminal_is_log_lines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pipeline.execution.local._SECONDS_BETWEEN_LINES", 0.0)
    with caplog.at_level(logging.INFO):
        list(run_shards(square, [3, 4], workers=1, label="squares", num_clips=lambda number: number))
    assert [record.getMessage().rsplit(",", 1)[0] for record in caplog.records] == [
        "squares: 3 of 7 clips",
        "squares: 7 of 7 clips",
    ]


@pytest.mark.parametrize(
    ("workers", "num_shards", "worthwhile", "expected"), [(4, 10, 1, 4), (4, 3, 9, 3), (0, 10, 1, 1), (0, 0, 0, 1)]
)
def test_workers_started(workers: int, num_shards: int, worthwhile: int, expected: int) -> None:
    params = ExecutionParams(executor="local", workers=workers)
    assert params.num_workers(num_shards, worthwhile) == expected


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
    ]
    assert counters["failed"] == {"empty": 1, "silent": 1}
    assert counters["executor"] == "local, 2 workers"
    assert counters["peak_memory_bytes"] > 10_000_000
    assert counters["seconds"] >= 0


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
    result = _run(program, "world")
    assert result.returncode == 0
    assert result.stdout == ""
    assert result.stderr.rstrip().endswith("INFO     hello world")
    assert "name -> greeting" in _run(program, "--help").stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nobody", "error: name: expected somebody, found [nobody]\n"),
        ("full", "error: data/spectrogram: expected room on the disk, found it full; "),
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
