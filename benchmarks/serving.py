"""Load test of `sonolex serve`, beside bare prediction of the same clips.

    python -m benchmarks.serving BUNDLE --audio FOLDER

Four parts: clips/s with 1, 8 and 32 clients, each of which asks for a prediction as soon as it has the last one's answer,
and beside it `sonolex.load(...).predict` in one process without a server, interleaved; answers compared with bare
prediction, clip by clip; memory of the server and its decoders over many requests; and mutated uploads. The clients are
threads of one process, which shares the cores with the server.
"""

import http.client
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import sonolex
from benchmarks.measuring import interleave, report
from pipeline.execution.threads import use_threads

_CLIENTS = (1, 8, 32)
_BARE = "bare predict"


@dataclass(frozen=True)
class Run:
    """Requests of one run."""

    rate: float  # answers per second
    seconds: list[float]  # of each answer
    statuses: Counter[int]
    best: dict[str, tuple[str, float]]  # file name -> class of the highest score, and this


@contextmanager
def serving(bundle: Path) -> Iterator[tuple[int, int]]:
    """Run the server, and yield its process id and port."""
    command = [sys.executable, "-m", "tools.sonolex", "serve", str(bundle), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - our own program
        assert process.stdout is not None
        found = re.search(r":(\d+)/", process.stdout.readline())
        if not found:
            raise RuntimeError(f"expected a server, found that it ended with status {process.wait()}")
        try:
            yield process.pid, int(found[1])
        finally:
            process.terminate()


class Client:
    """One client, with one connection."""

    def __init__(self, port: int, path: str) -> None:
        self._connection, self._path = http.client.HTTPConnection("127.0.0.1", port, timeout=120), path

    def ask(self, content: bytes) -> tuple[int, Any, float]:
        """Return status, answer and seconds of a request."""
        started = time.perf_counter()
        self._connection.request("POST", self._path, content)
        response = self._connection.getresponse()
        body = response.read()
        return response.status, json.loads(body), time.perf_counter() - started


def run_clients(port: int, path: str, sounds: Sequence[tuple[str, bytes]], clients: int) -> Run:
    """Ask for every sound once, shared by the clients."""

    def one(number: int) -> list[tuple[str, int, Any, float]]:
        client = Client(port, path)
        return [(name, *client.ask(content)) for name, content in sounds[number::clients]]

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        found = [answer for answers in pool.map(one, range(clients)) for answer in answers]
    rate = len(found) / (time.perf_counter() - started)
    best = {
        name: (answer["scores"][0]["name"], answer["scores"][0]["score"])
        for name, status, answer, _ in found
        if status == 200
    }
    return Run(rate, [seconds for *_, seconds in found], Counter(status for _, status, _, _ in found), best)


def run_bare(model: "sonolex.model.Model", paths: Sequence[Path]) -> Run:
    """Predict every sound once, one after the other, in this process."""
    seconds, best = list[float](), dict[str, tuple[str, float]]()
    for path in paths:
        started = time.perf_counter()
        (top,) = model.predict(path).top(1)
        best[path.name] = (top.name, top.score)
        seconds.append(time.perf_counter() - started)
    return Run(len(paths) / sum(seconds), seconds, Counter({200: len(paths)}), best)


def memory(pid: int) -> int:
    """Return the resident memory of a process and its children, in bytes."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    pages = [int(Path(f"/proc/{process}/statm").read_text().split()[1]) for process in (str(pid), *children)]
    return sum(pages) * os.sysconf("SC_PAGESIZE")


def mutate(content: bytes, random: np.random.Generator) -> bytes:
    """Return a sound with some bytes changed, at its head or anywhere, or with its end cut off."""
    values = np.frombuffer(content, np.uint8).copy()
    kind = random.integers(3)
    if kind == 0:
        return content[: int(random.integers(len(content)))]
    places = random.integers(0, 64 if kind == 1 else len(values), int(random.integers(1, 30)))
    values[places] = random.integers(0, 256, len(places))
    return values.tobytes()


def run(bundle: Path, paths: Sequence[Path], requests: int, mutations: int, repeats: int) -> list[dict[str, Any]]:
    """Measure everything and return the rows of the table."""
    use_threads(1)
    model, name = sonolex.load(bundle), bundle.resolve().name
    sounds = [(path.name, path.read_bytes()) for path in paths]
    path = f"/models/{name}/predict"
    with serving(bundle) as (pid, port):
        for _ in range(2):  # warms up both
            run_bare(model, paths[:4])
            run_clients(port, path, sounds[:4], 2)
        contenders = {
            f"{count} clients": (lambda count=count: run_clients(port, path, sounds, count)) for count in _CLIENTS
        }
        runs = interleave({_BARE: lambda: run_bare(model, paths)} | contenders, repeats)
        rows = [_row(name, some, runs[_BARE]) for name, some in runs.items()]
        rows.append(_memory_row(pid, port, path, sounds, requests))
        rows.append(_mutation_row(port, path, sounds, mutations))
    return rows


def _row(name: str, runs: Sequence[Run], bare: Sequence[Run]) -> dict[str, Any]:
    seconds = 1e3 * np.concatenate([run.seconds for run in runs])
    expected = bare[0].best
    differ = [
        name
        for run in runs
        for name, (label, score) in expected.items()
        if run.best.get(name, ("", 0.0))[0] != label or abs(run.best[name][1] - score) > 1e-5
    ]
    return {
        "what": name,
        "clips/s": float(np.median([run.rate for run in runs])),
        "of bare": float(np.median([run.rate / other.rate for run, other in zip(runs, bare, strict=True)])),
        "p50 ms": float(np.percentile(seconds, 50)),
        "p99 ms": float(np.percentile(seconds, 99)),
        "statuses": _spell(sum((run.statuses for run in runs), Counter())),
        "other answers": len(differ),
    }


def _memory_row(pid: int, port: int, path: str, sounds: Sequence[tuple[str, bytes]], requests: int) -> dict[str, Any]:
    """Return the memory at four times of many requests of eight clients."""
    marks, statuses = [memory(pid)], Counter[int]()
    for _ in range(4):
        some = [sounds[number % len(sounds)] for number in range(requests // 4)]
        statuses += run_clients(port, path, some, 8).statuses
        marks.append(memory(pid))
    megabytes = ", ".join(f"{mark / 1e6:.0f}" for mark in marks)
    return {"what": f"memory over {requests} requests, MB: {megabytes}", "statuses": _spell(statuses)}


def _mutation_row(port: int, path: str, sounds: Sequence[tuple[str, bytes]], mutations: int) -> dict[str, Any]:
    """Return the answers to mutated uploads, and whether a whole one is answered as before."""
    random = np.random.default_rng(0)
    before = run_clients(port, path, sounds[:1], 1).best
    broken = [(str(number), mutate(sounds[number % len(sounds)][1], random)) for number in range(mutations)]
    statuses = run_clients(port, path, broken, 8).statuses
    after = run_clients(port, path, sounds[:1], 1).best
    return {
        "what": f"{mutations} mutated uploads; then a whole one: {'as before' if before == after else 'another answer'}",
        "statuses": _spell(statuses),
    }


def _spell(statuses: Counter[int]) -> str:
    return ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))


def main(
    bundle: Path,
    audio: Annotated[Path, typer.Option(help="folder of sounds")],
    clips: int = 100,
    requests: Annotated[int, typer.Option(help="while memory is watched")] = 2000,
    mutations: int = 1000,
    repeats: int = 3,
    json: Annotated[Path | None, typer.Option(help="write the rows there")] = None,
) -> None:
    """Measure the server under load."""
    paths = sorted(path for path in audio.iterdir() if path.is_file())
    step = max(1, len(paths) // clips)
    rows = run(bundle, paths[::step][:clips], requests, mutations, repeats)
    report("serving", "predictions over HTTP, beside bare ones", rows, json_path=json)


if __name__ == "__main__":
    typer.run(main)
