"""SIGKILLs of stages: each is killed at random moments, and what it leaves is what `dvc repro` then starts from.

A stage runs as `dvc repro` runs it, with its outputs removed. A killed one leaves no output, or the whole; what it leaves
besides (shards in the memo, checkpoints, unfinished files) must not change what the next run makes. Runs are forked from one
process that has imported the stages, since what takes seconds of a run is to start it.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ruamel.yaml import YAML

from benchmarks.attack.outcomes import Tally
from pipeline.artifacts.files import file_digest

CURVES = "epochs.csv"  # of a run, which people watch while it trains

_SERVER = """
import importlib, json, os, pathlib, runpy, sys
for path in sorted(pathlib.Path("stages").glob("[a-z]*.py")):
    importlib.import_module("stages." + path.stem)
for line in sys.stdin:
    child = os.fork()
    if not child:
        os.setpgrp()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        module, *sys.argv[1:] = json.loads(line)
        status = 1
        try:
            del sys.modules[module]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            os._exit(status)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Stage(NamedTuple):
    """One run of a stage, from dvc.lock."""

    name: str  # in dvc.yaml
    command: list[str]  # module and arguments
    outputs: list[str]
    persist: bool  # whether `dvc repro` leaves the outputs where they are


class _Server:
    """Starts runs of stages in a workspace."""

    def __init__(self, workspace: Path) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - our own stages
            [sys.executable, "-c", _SERVER],
            cwd=workspace,
            env=os.environ | {"PYTHONPATH": str(workspace), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def start(self, command: list[str]) -> int:
        """Start a run and return its process id."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def wait(self) -> int:
        """Wait for the run and return its exit status, negative for a signal."""
        return self._answer()

    def close(self) -> None:
        """End the server."""
        self._process.kill()
        self._process.wait()

    def _answer(self) -> int:
        assert self._process.stdout
        return int(self._process.stdout.readline())


def stages_of(workspace: Path) -> list[Stage]:
    """Return the first run of every stage of dvc.yaml that has run in a workspace, in the order of the graph."""
    yaml = YAML(typ="safe")
    written = yaml.load(workspace / "dvc.lock")["stages"]
    defined = yaml.load(workspace / "dvc.yaml")["stages"]
    stages = {}
    for name, definition in defined.items():
        address = next((address for address in written if address.split("@")[0] == name), None)
        if address is not None:
            module, *arguments = written[address]["cmd"].split()[2:]
            outputs = [output["path"] for output in written[address]["outs"]]
            persist = any("persist" in str(output) for output in definition["outs"])
            stages[name] = Stage(name, [module, *arguments], outputs, persist)
    return list(stages.values())


def attack(workspace: Path, folder: Path, count: int, repro: Callable[[Path], object], seed: int = 0) -> list[Tally]:
    """Kill every stage of a finished workspace `count` times, and return the outcomes; `folder` is for what kills leave.

    After its kills each stage is let through. At the end the outputs of all stages are as the last kill has left them, and
    `repro`, which is to run `dvc repro`, makes them again: the last row.
    """
    generator, expected, lock = np.random.default_rng(seed), contents(workspace), _lock(workspace)
    stages, server = stages_of(workspace), _Server(workspace)
    try:
        tallies = [_kill(server, workspace, stage, count, generator, folder) for stage in stages]
    finally:
        server.close()
    for stage in stages:
        _remove(workspace, stage)
        _copy(stage, folder, workspace)
    tally = Tally("kills: dvc repro afterwards")
    repro(workspace)
    differences = _differences(expected, contents(workspace))
    same = not differences and _lock(workspace) == lock
    tally.add("right" if same else "silent", f"others in {', '.join(differences) or 'dvc.lock'}")
    return [*tallies, tally]


def _kill(
    server: _Server, workspace: Path, stage: Stage, count: int, generator: np.random.Generator, folder: Path
) -> Tally:
    """Kill a stage again and again, then let it through, and compare; what the last kill leaves is copied to `folder`."""
    tally, expected = Tally(f"kills: {stage.name}"), contents(workspace)
    curves = {name: (workspace / name).read_bytes() for name in expected if Path(name).name == CURVES}
    _forget(workspace, stage)
    started = time.perf_counter()
    _finish(server, workspace, stage, expected, tally)
    seconds = time.perf_counter() - started
    _forget(workspace, stage)
    for number in range(count):
        _remove(workspace, stage)
        process = server.start(stage.command)
        time.sleep(generator.uniform(0.0, 1.1) * seconds)
        with suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)
        server.wait()
        others = [
            name
            for name, digest in contents(workspace).items()
            if digest != expected.get(name) and not _is_begun(workspace / name, curves.get(name, b""))
        ]
        tally.add("silent" if others else "right", f"kill {number} left others in {', '.join(others)}")
    _copy(stage, workspace, folder)
    _finish(server, workspace, stage, expected, tally)
    return tally


def _is_begun(path: Path, whole: bytes) -> bool:
    """Return whether a file has the first rows of a whole one: curves are written during training, a row at a time."""
    rows = path.read_bytes()
    return whole.startswith(rows) and (not rows or rows.endswith(b"\n"))


def _finish(server: _Server, workspace: Path, stage: Stage, expected: Mapping[str, str], tally: Tally) -> None:
    """Let a stage through; count it where it fails or makes other bytes."""
    _remove(workspace, stage)
    server.start(stage.command)
    status, differences = server.wait(), _differences(expected, contents(workspace))
    if status or differences:
        what = f"{' '.join(stage.command)}: status {status}, others in {', '.join(differences)}"
        tally.add("traceback" if status else "silent", what)


def contents(workspace: Path) -> dict[str, str]:
    """Return the digest of every file that is an output of a stage."""
    outputs = _outputs((workspace / "dvc.lock").read_text(encoding="utf-8"))
    files = (file for output in outputs for file in (workspace / output, *(workspace / output).rglob("*")))
    return {str(file.relative_to(workspace)): file_digest(file) for file in files if file.is_file()}


@cache
def _outputs(lock: str) -> list[str]:
    """Return the outputs of all stages in a dvc.lock, which takes longer to parse than they to be read."""
    stages = YAML(typ="safe").load(lock)["stages"].values()
    return sorted({output["path"] for stage in stages for output in stage["outs"]})


def _differences(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    return sorted(name for name in {**expected, **found} if expected.get(name) != found.get(name))


def _lock(workspace: Path) -> object:
    return YAML(typ="safe").load(workspace / "dvc.lock")


def _forget(workspace: Path, stage: Stage) -> None:
    """Remove what outlives a run of a stage, so that it has something to do."""
    for folder in (f"memo/{stage.name}", "checkpoints"):
        shutil.rmtree(workspace / ".sonolex" / folder, ignore_errors=True)


def _remove(workspace: Path, stage: Stage) -> None:
    """Remove a stage's outputs, as `dvc repro` does before it runs."""
    if not stage.persist:
        for output in stage.outputs:
            shutil.rmtree(workspace / output, ignore_errors=True)
            (workspace / output).unlink(missing_ok=True)


def _copy(stage: Stage, source: Path, target: Path) -> None:
    """Copy the outputs of a stage that are there."""
    for output in stage.outputs:
        if (source / output).exists():
            (target / output).parent.mkdir(parents=True, exist_ok=True)
            if (source / output).is_dir():
                shutil.copytree(source / output, target / output, dirs_exist_ok=True)
            else:
                shutil.copy2(source / output, target / output)
