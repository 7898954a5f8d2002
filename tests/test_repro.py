"""`sonolex repro` in toy repositories: order, stages side by side, failures, signals, and what it leaves for `dvc repro`."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import REPOSITORY
from dvc.exceptions import ReproductionError
from dvc.repo import Repo
from dvc.utils.serialize import dumps_yaml
from rich.console import Console
from ruamel.yaml import YAML

from pipeline.errors import SonolexError
from pipeline.execution.threads import CORES_VARIABLE, num_cores
from tools import repro_worker
from tools.repro import Graph, load_graph, order, share_of_cores
from tools.repro_view import Running, View, last_line, spell_seconds

ENVIRONMENT = os.environ | {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": str(REPOSITORY),
    "DVC_NO_ANALYTICS": "1",
    "SHELL": "/bin/sh",
}
REPRO = (sys.executable, "-m", "tools.sonolex", "repro")


def make_toy(path: Path, stages: dict[str, Any], params: dict[str, Any] | None = None, *, git: bool = False) -> Path:
    """Make a DVC repository of a few shell commands; by default one that git knows nothing of."""
    (path / ".dvc").mkdir(parents=True)
    (path / ".dvc/config").write_text("[core]\n    analytics = false\n" + ("" if git else "    no_scm = true\n"))
    if git:
        subprocess.run(["git", "init", "-q"], cwd=path, check=True)
    write_yaml(path / "dvc.yaml", {"stages": stages})
    write_yaml(path / "params.yaml", params or {})
    return path


def write_yaml(path: Path, document: dict[str, Any]) -> None:
    YAML().dump(document, path)


def stage(cmd: str, *deps: str, out: str, **others: Any) -> dict[str, Any]:
    return {"cmd": cmd, **({"deps": list(deps)} if deps else {}), "outs": [out], **others}


def timed(out: str, seconds: float, *deps: str) -> dict[str, Any]:
    """Return a stage that writes when it began and when it ended, so many seconds later."""
    return stage(
        f"date +%s.%N > {out}.tmp; sleep {seconds}; date +%s.%N >> {out}.tmp; mv {out}.tmp {out}", *deps, out=out
    )


# Imports once, then forks a run for every line that it reads: what takes seconds of a run is to start it.
SERVER = """
import json, os, sys
import tools.repro
from tools.sonolex import app
app(["repro", "--dry"], standalone_mode=False)
for line in sys.stdin:
    toy, arguments, output = json.loads(line)
    child = os.fork()
    if not child:
        os.chdir(toy)
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        app(["repro", *arguments])
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Program:
    """`sonolex repro`, imported once."""

    def __init__(self, folder: Path) -> None:
        toy = make_toy(folder / "toy", {"only": stage("echo only > only", out="only")})
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._output = folder / "output"
        self._server = subprocess.Popen([sys.executable, "-c", SERVER], cwd=toy, env=ENVIRONMENT, **pipes)
        assert self._server.stdout.readline() == "only\n"

    def __call__(self, toy: Path, *arguments: str, status: int = 0) -> str:
        """Run it; return what it printed."""
        self._server.stdin.write(json.dumps([str(toy), arguments, str(self._output)]) + "\n")
        self._server.stdin.flush()
        found = int(self._server.stdout.readline())
        printed = self._output.read_text()
        assert found == status, printed
        assert "Traceback" not in printed
        return printed

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()


@pytest.fixture(scope="module")
def repro(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    with closing(Program(tmp_path_factory.mktemp("repro"))) as program:
        yield program


def dvc_repro(toy: Path) -> list[str]:
    """Run `dvc repro`; return the stages that it brought up to date."""
    with pytest.MonkeyPatch.context() as patch, Repo(str(toy)) as repo:
        patch.chdir(toy)
        patch.setenv("SHELL", "/bin/sh")
        return [stage.addressing for stage in repo.reproduce()]


def outcomes(printed: str) -> dict[str, str]:
    """Return stage -> how it ended, from the lines of a run away from a terminal."""
    pattern = r"^\d\d:\d\d:\d\d +\d+/\d+  (\S+): (ran|from the run cache|unchanged|failed|stopped), "
    return dict(re.findall(pattern, printed, flags=re.MULTILINE))


def stale(toy: Path) -> dict[str, Any]:
    with Repo(str(toy)) as repo:
        return dict(repo.status())


def released(toy: Path) -> bool:
    """Say whether DVC's locks of paths are given back."""
    return not any(json.loads((toy / ".dvc/tmp/rwlock").read_text()).values())


def locked(toy: Path) -> dict[str, Any]:
    return dict(YAML(typ="safe").load(toy / "dvc.lock")["stages"])


def interval(path: Path) -> tuple[float, float]:
    began, ended = map(float, path.read_text().split())
    return began, ended


def overlap(one: Path, two: Path) -> bool:
    (began, ended), (other_began, other_ended) = interval(one), interval(two)
    return began < other_ended and other_began < ended


def wait_for(condition: Callable[[], object], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Yield a function that starts a program in a toy, in a session of its own; at the end none of it is alive."""
    started: list[subprocess.Popen[str]] = []

    def start_program(toy: Path, *command: str) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen(command, cwd=toy, env=ENVIRONMENT, start_new_session=True, **pipes))
        return started[-1]

    yield start_program
    for process in started:
        process.kill()
        process.wait()


def at_work(toy: Path) -> list[psutil.Process]:
    """Return the processes that run in a toy."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()) == toy and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


DIAMOND = {
    "top": stage("echo top > top", out="top"),
    "left": timed("left", 1, "top"),
    "right": timed("right", 1, "top"),
    "bottom": stage("cat left right > bottom", "left", "right", out="bottom"),
}


def test_stages_run_side_by_side_and_dvc_has_nothing_to_do(tmp_path: Path, repro: Program) -> None:
    toy = make_toy(tmp_path / "toy", DIAMOND)
    printed = repro(toy, "-j", "2")
    assert outcomes(printed) == dict.fromkeys(DIAMOND, "ran")
    assert overlap(toy / "left", toy / "right")
    assert (toy / "bottom").read_text() == (toy / "left").read_text() + (toy / "right").read_text()
    assert dvc_repro(toy) == []
    assert outcomes(repro(toy, "-j", "2")) == dict.fromkeys(DIAMOND, "unchanged")
    assert "begins" in printed.split("left: ran")[0]
    log = (toy / ".sonolex/logs/left.log").read_text()
    assert "Running stage 'left'" in log  # not that of the second run, which told nothing
    assert not list((toy / ".sonolex/logs").glob("*.partial"))


def test_one_at_a_time_is_one_at_a_time(tmp_path: Path, repro: Program) -> None:
    toy = make_toy(tmp_path / "toy", {name: timed(name, 0.2) for name in ("a", "b")})
    repro(toy, "-j", "1")
    assert not overlap(toy / "a", toy / "b")


def test_twelve_stages_that_end_together_are_all_in_dvc_lock(tmp_path: Path, repro: Program) -> None:
    many = stage("echo ${item.number} > ${item.number}.txt", out="${item.number}.txt")
    toy = make_toy(tmp_path / "toy", {"many": {"matrix": {"number": list(range(12))}, **many}}, git=True)
    assert outcomes(repro(toy, "-j", "4")) == {f"many@{number}": "ran" for number in range(12)}
    text = (toy / "dvc.lock").read_text()
    assert list(locked(toy)) == [f"many@{number}" for number in range(12)]
    assert dumps_yaml(YAML().load(text)) == text  # as DVC prints it
    assert set((toy / ".gitignore").read_text().split()) == {f"/{number}.txt" for number in range(12)}
    assert released(toy)
    assert stale(toy) == {}


def test_dvc_lock_is_that_of_dvc_repro_whatever_ends_first(tmp_path: Path, repro: Program) -> None:
    stages = {
        "last": stage("cat early late folder/* > last", "early", "late", "folder", out="last", params=["b"]),
        "late": stage("sleep 0.5; echo late > late", out="late", params=["a", "b.c"]),
        "folder": {
            **stage("mkdir folder; echo 1 > folder/1; echo 2 > folder/2", "early", out="folder"),
            "desc": "two files",
        },
        "early": stage("echo early\necho again > early", out="early", always_changed=True),
    }
    ours, dvcs = (make_toy(tmp_path / name, stages, {"a": [1, "2"], "b": {"c": 1e-3}}) for name in ("ours", "dvcs"))
    repro(ours, "-j", "4")
    dvc_repro(dvcs)
    assert (ours / "dvc.lock").read_text() == (dvcs / "dvc.lock").read_text()
    assert list(stale(ours).values()) == [["always changed"]]


def test_a_failure_stops_what_needs_it_and_nothing_else(tmp_path: Path, repro: Program) -> None:
    stages = {
        "bad": stage("echo so far; echo 'the reason' >&2; exit 3", out="bad"),
        "needs_bad": stage("cp bad needs_bad", "bad", out="needs_bad"),
        "needs_that": stage("cp needs_bad needs_that", "needs_bad", out="needs_that"),
        "good": stage("sleep 0.5; echo good > good", out="good"),
        "needs_good": stage("cp good needs_good", "good", out="needs_good"),
    }
    toy = make_toy(tmp_path / "toy", stages)
    printed = repro(toy, "-j", "2", status=1)
    assert outcomes(printed) == {"bad": "failed", "good": "ran", "needs_good": "ran"}
    assert "    the reason" in printed.splitlines()
    assert "exited with 3" in printed
    assert "left out, since they need bad: needs_bad, needs_that" in printed
    assert set(locked(toy)) == {"good", "needs_good"}
    assert "the reason" in (toy / ".sonolex/logs/bad.log").read_text()
    stages["bad"] = stage("echo mended > bad", out="bad")
    write_yaml(toy / "dvc.yaml", {"stages": stages})
    expected = {"bad": "ran", "needs_bad": "ran", "needs_that": "ran", "good": "unchanged", "needs_good": "unchanged"}
    assert outcomes(repro(toy)) == expected


def test_what_ran_before_comes_from_the_run_cache(tmp_path: Path, repro: Program) -> None:
    runs = stage("cat params.yaml > out; echo ran >> runs", out="out", params=["a"])
    toy = make_toy(tmp_path / "toy", {"runs": runs, "after": stage("cp out after", "out", out="after")}, {"a": 1})
    assert set(outcomes(repro(toy)).values()) == {"ran"}
    write_yaml(toy / "params.yaml", {"a": 2})
    assert set(outcomes(repro(toy)).values()) == {"ran"}
    write_yaml(toy / "params.yaml", {"a": 1})
    assert outcomes(repro(toy)) == {"runs": "from the run cache", "after": "from the run cache"}
    assert (toy / "after").read_text() == "a: 1\n"
    assert (toy / "runs").read_text() == "ran\nran\n"
    assert stale(toy) == {}
    assert outcomes(repro(toy, "--force")) == {"runs": "ran", "after": "ran"}


def test_a_stage_that_always_changes_runs_once_and_first(tmp_path: Path, repro: Program) -> None:
    stages = {
        "after": stage("cp always after", "always", out="after"),
        "always": stage("echo ran >> runs; echo same > always", out="always", always_changed=True),
        "other": stage("echo other > other", out="other"),
    }
    toy = make_toy(tmp_path / "toy", stages)
    assert repro(toy, "--dry").split() == ["always", "after", "other"]
    assert not (toy / "runs").exists()
    repro(toy)
    assert outcomes(repro(toy)) == {"always": "ran", "after": "unchanged", "other": "unchanged"}
    assert (toy / "runs").read_text() == "ran\nran\n"


def test_targets_frozen_stages_and_data_are_as_dvc_has_them(tmp_path: Path, repro: Program) -> None:
    stages = {
        "first": stage("cp data first", "data", out="first"),
        "second": stage("cp first second", "first", out="second", frozen=True),
        "third": {
            "matrix": {"of": ["a", "b"]},
            **stage("cp second third.${item.of}", "second", out="third.${item.of}"),
        },
        "apart": stage("echo apart > apart", out="apart"),
    }
    toy = make_toy(tmp_path / "toy", stages)
    (toy / "data").write_text("data")
    (toy / "first").write_text("by hand")  # and never brought up to date: who asks for it is frozen
    (toy / "second").write_text("by hand")
    with Repo(str(toy)) as repo:
        repo.add(str(toy / "data"))
    assert repro(toy, "--dry", "third@a").split() == ["second", "third@a"]
    assert repro(toy, "--dry", "first").split() == ["data.dvc", "first"]
    assert set(outcomes(repro(toy, "third"))) == {"second", "third@a", "third@b"}
    assert (toy / "third.b").read_text() == "by hand"
    repro(toy)
    assert stale(toy) == {}
    assert "error: dvc: " in repro(toy, "nothing", status=1)


def slow(name: str, *, before: str = "") -> dict[str, Any]:
    """Return a stage that says that it began, and ends within a minute, in a program of a program."""
    return stage(
        f"{before}echo begun > {name}.begun; python -c 'import time; time.sleep(60)'; echo {name} > {name}", out=name
    )


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow), (signal.SIGKILL, -9)],
)
def test_a_stopped_run_leaves_nothing_that_is_in_the_way(
    number: int, status: int, tmp_path: Path, start: Start, repro: Program
) -> None:
    stages = {"quick": stage("echo quick > quick", out="quick"), "a": slow("a"), "b": slow("b")}
    stages["after"] = stage("cat a b > after", "a", "b", out="after")
    toy = make_toy(tmp_path / "toy", stages)
    run = start(toy, *REPRO, "-j", "3")
    wait_for(lambda: (toy / "a.begun").exists() and (toy / "b.begun").exists() and (toy / "dvc.lock").exists())
    run.send_signal(number)
    printed = run.communicate(timeout=30)[0]
    assert run.returncode == status
    if number != signal.SIGKILL:
        assert outcomes(printed) == {"quick": "ran", "a": "stopped", "b": "stopped"}
        assert "left out, since the run was stopped: 1 stages" in printed
        assert not at_work(toy)
    wait_for(lambda: not at_work(toy))  # where the program itself was killed, its processes end by themselves
    assert set(locked(toy)) == {"quick"}
    assert released(toy)
    for name in ("a", "b"):
        stages[name] = stage(f"echo {name} > {name}", out=name)
    write_yaml(toy / "dvc.yaml", {"stages": stages})
    assert dvc_repro(toy) == ["a", "b", "after"]
    assert (toy / "after").read_text() == "a\nb\n"
    assert outcomes(repro(toy)) == dict.fromkeys(stages, "unchanged")


def test_a_shell_does_not_go_on_when_its_program_is_killed_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes are killed in any order, and a shell may be quick."""
    shell = psutil.Popen(["sh", "-c", "sleep 60; exit 0"], start_new_session=True)
    while not (programs := shell.children()):
        time.sleep(0.01)
    send = repro_worker._send

    def send_slowly(process: psutil.Process, number: int) -> None:
        send(process, number)
        with suppress(psutil.TimeoutExpired):
            shell.wait(0.3)

    monkeypatch.setattr(repro_worker, "_others", lambda leader: [*programs, shell])
    monkeypatch.setattr(repro_worker, "_send", send_slowly)
    repro_worker.kill_others(0)
    assert shell.wait(10) == -signal.SIGKILL


def test_a_command_that_will_not_end_is_killed_when_asked_again(tmp_path: Path, start: Start) -> None:
    toy = make_toy(tmp_path / "toy", {"deaf": slow("deaf", before="trap '' INT; ")})
    run = start(toy, *REPRO)
    wait_for(lambda: (toy / "deaf.begun").exists())
    run.send_signal(signal.SIGINT)
    time.sleep(1.0)
    assert run.poll() is None
    run.send_signal(signal.SIGINT)
    assert outcomes(run.communicate(timeout=8)[0]) == {"deaf": "stopped"}
    assert not at_work(toy)


def _has_children(process: psutil.Process) -> bool:
    """Return whether a process has children; one that has ended meanwhile has none."""
    try:
        return bool(process.children())
    except psutil.NoSuchProcess:
        return False


def test_a_process_that_is_killed_is_a_failure_and_takes_its_command_along(tmp_path: Path, start: Start) -> None:
    toy = make_toy(tmp_path / "toy", {"lost": slow("lost"), "good": stage("echo good > good", out="good")})
    run = start(toy, *REPRO, "-j", "2")
    wait_for(lambda: (toy / "lost.begun").exists())
    assert psutil.Process(run.pid).num_threads() == 1  # beside another thread nothing should be forked
    busy: list[psutil.Process] = []

    def only_the_slow_command_is_left() -> bool:
        busy[:] = [child for child in psutil.Process(run.pid).children() if _has_children(child)]
        return (toy / "good").exists() and len(busy) == 1

    wait_for(only_the_slow_command_is_left)
    busy[0].kill()
    printed = run.communicate(timeout=30)[0]
    assert run.returncode == 1
    assert outcomes(printed) == {"lost": "failed", "good": "ran"}
    assert "SIGKILL" in printed
    assert not at_work(toy)


def test_a_second_run_is_refused_and_one_of_dvc_is_waited_for(tmp_path: Path, start: Start, repro: Program) -> None:
    gated = "echo begun > begun; while ! [ -e gate ]; do sleep 0.1; done; echo gated > gated; rm begun gate"
    toy = make_toy(
        tmp_path / "toy", {"gated": stage(gated, out="gated"), "other": stage("echo other > other", out="other")}
    )
    ours = start(toy, *REPRO)
    wait_for((toy / "begun").exists)
    assert f"found process {ours.pid} at work" in repro(toy, status=1)
    with pytest.raises(ReproductionError) as caught:
        dvc_repro(toy)
    assert "is busy" in str(caught.value.__cause__)
    (toy / "gate").touch()
    assert ours.wait(timeout=30) == 0
    for name in ("gated", "dvc.lock"):
        (toy / name).unlink()
    shutil.rmtree(toy / ".dvc/cache")
    theirs = start(toy, "dvc", "repro", "gated")
    wait_for((toy / "begun").exists)
    ours = start(toy, *REPRO, "-j", "2")
    printed = next(line for line in ours.stdout if "waits" in line)
    (toy / "gate").touch()
    printed += ours.communicate(timeout=30)[0]
    assert theirs.wait(timeout=30) == 0
    assert "gated: waits, another DVC process is running: " in printed
    assert outcomes(printed) == {"gated": "unchanged", "other": "ran"}


def test_cores_are_shared_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("SONOLEX_CORES", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert num_cores() == 8
    assert share_of_cores(1) == (8, {})  # one alone is told nothing
    assert share_of_cores(3) == (2, dict.fromkeys(names, "2"))
    assert share_of_cores(9) == (1, dict.fromkeys(names, "1"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert share_of_cores(2)[1]["MKL_NUM_THREADS"] == "4"
    assert "OMP_NUM_THREADS" not in share_of_cores(2)[1]  # less is kept
    for found, expected in (("3", 3), ("99", 8), ("0", 1), ("many", 8)):
        monkeypatch.setenv(CORES_VARIABLE, found)
        assert num_cores() == expected


def test_what_most_waits_for_goes_first() -> None:
    needs = {"a": (), "b": (), "c": ("b",), "d": ("c", "a"), "e": ()}
    graph = Graph(dict.fromkeys(needs), {name: frozenset(found) for name, found in needs.items()})
    assert list(order(graph)) == ["b", "a", "c", "d", "e"]


def test_what_dvc_has_against_a_graph_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = {"a": stage("cp b a", "b", out="a"), "b": stage("cp a b", "a", out="b")}
    toy = make_toy(tmp_path / "toy", stages)
    from tools import repro as command

    monkeypatch.chdir(toy)
    with pytest.raises(SonolexError, match=r"dvc: .*both a dependency and an output in stages: "):
        command.run([], jobs=1, force=False, dry=True, console=Console())


def test_the_view_of_a_terminal_fits_and_shows_what_is_at_work(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    log.write_text("begun\nepoch 1\repoch 2 " + "of many " * 30 + "\r\n\n")
    assert last_line(log).startswith("epoch 2 of many")
    assert last_line(tmp_path / "none.log") == ""
    console = Console(width=100, force_terminal=True, record=True, file=(tmp_path / "terminal").open("w"))
    stages = [Running(f"train_frames@{name}-1-0", log, 1) for name in ("ast", "cnn")]
    with View(console, 9) as view:
        view.ends(Running("code", log, 1), "ran")
        view.ends(Running("split", log, 1), "unchanged")
        view.begins(stages[0])
        view.refresh(stages)
        drawn = console.export_text(clear=False)
        view.ends(stages[1], "failed", "exited with 3")
    assert max(map(len, drawn.splitlines())) <= 100
    assert "2 of 9 done, 2 running, 5 waiting" in drawn
    assert re.search(r"train_frames@ast-1-0 +0\.\d s +epoch 2 of many", drawn)
    assert re.search(r"train_frames@cnn-1-0 +0\.\d s +checked by DVC", drawn)
    printed = console.export_text()
    assert "split" not in printed  # what was as it should be leaves no line
    assert re.search(r"3/9  train_frames@cnn-1-0: failed, 0\.\d s: exited with 3", printed)


@pytest.mark.parametrize(
    ("seconds", "expected"), [(3.21, "3.2 s"), (48.4, "48 s"), (125, "2 min 05 s"), (11400, "3 h 10 min")]
)
def test_seconds_are_spelled_for_people(seconds: float, expected: str) -> None:
    assert spell_seconds(seconds) == expected


def test_the_graph_is_dvcs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = make_toy(tmp_path / "toy", DIAMOND)
    monkeypatch.chdir(toy)
    with Repo(str(toy)) as repo:
        graph = load_graph(repo, [])
    assert graph.needs == {"top": set(), "left": {"top"}, "right": {"top"}, "bottom": {"left", "right"}}
