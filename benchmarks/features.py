"""Benchmark of feature extraction, FLAC to stored log-mel frames: Sonolex compared with a lower bound and three peers.

    python -m benchmarks.features --clips 960 --peer-clips 240 --repeats 2

Ten seconds of stereo at 44.1 kHz become 128 log-mel bands at 16 kHz. Each contender runs in a separate process, once on a
few clips and once on all, interleaved. `whole` counts the whole process; `net` excludes its start: additional clips divided
by additional seconds. The floor is the time of decoding, resampling and the FFT with its mel product in bare library calls,
on one core and on all cores.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import soundfile
import soxr
import typer

from benchmarks.audio import write_flacs
from benchmarks.measuring import interleave, report, seconds_of, summary
from benchmarks.peers import NUM_MELS, PEERS, SAMPLE_RATE, missing
from benchmarks.workspace import ROOT, Workspace
from pipeline.spectrogram.kaldi import KaldiParams, mel_filters

FEW = 16  # clips of the short runs
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
FRONT_END = KaldiParams(
    kind="kaldi",
    sample_rate=SAMPLE_RATE,
    win_length=400,
    hop_length=160,
    n_fft=512,
    n_mels=NUM_MELS,
    f_min=20.0,
    f_max=8000.0,
    pre_emphasis=0.97,
)


def floor(paths: list[Path]) -> dict[str, float]:
    """Return the milliseconds per clip of each part, as the median over the files, in this process on one thread."""
    window = np.hanning(FRONT_END.win_length).astype(np.float32)
    filters = np.ascontiguousarray(mel_filters(FRONT_END).T.astype(np.float32))
    times: dict[str, list[float]] = {"decode": [], "resample": [], "fft and mel": []}
    for path in [*paths[:2], *paths]:  # the first two warm up the libraries
        started = time.perf_counter()
        samples, rate = soundfile.read(path, dtype="float32")
        decoded = time.perf_counter()
        mono = (samples[:, 0] + samples[:, 1]) * np.float32(0.5)
        mixed = time.perf_counter()
        waveform = soxr.resample(mono, rate, SAMPLE_RATE, "HQ")
        resampled = time.perf_counter()
        windows = np.lib.stride_tricks.sliding_window_view(waveform, FRONT_END.win_length)[:: FRONT_END.hop_length]
        spectrum = np.fft.rfft(windows * window, FRONT_END.n_fft)
        np.log(np.maximum((spectrum.real**2 + spectrum.imag**2) @ filters, 1e-7))
        ended = time.perf_counter()
        for name, seconds in zip(times, (decoded - started, resampled - mixed, ended - resampled), strict=True):
            times[name].append(1e3 * seconds)
    return {name: float(np.median(values[2:])) for name, values in times.items()}


def floor_rate(paths: list[Path], processes: int) -> float:
    """Return the clips/s of the floor with several processes, each on its own subset of the files."""
    parts = [paths[number::processes] for number in range(processes)]
    os.environ.update(ONE_THREAD)
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        return sum(1e3 / sum(times.values()) for times in pool.map(floor, parts))


class Sonolex:
    """The stages corpus and spectrogram, run as by a user, in a new workspace each time."""

    def __init__(self, audio: Path, scratch: Path, dtype: str) -> None:
        self.audio, self.scratch, self.dtype = audio, scratch, dtype

    def seconds(self, clips: int, workers: int) -> float:
        """Return the seconds of the stage spectrogram's whole process, with an existing manifest."""
        folder = Path(tempfile.mkdtemp(dir=self.scratch)) / "workspace"
        rows = [
            {"path": path.name, "label": f"{number % 2}", "fold": f"{1 + number % 5}"}
            for number, path in enumerate(sorted(self.audio.glob("*.flac"))[:clips])
        ]
        front_end = ", ".join(f"{key}: {value}" for key, value in FRONT_END.model_dump().items())
        overrides = [
            f"spectrogram.front_end={{{front_end}}}",
            f"spectrogram.dtype={self.dtype}",
            f"execution.workers={workers}",
        ]
        if clips < 128:  # small shards, so that every worker has one
            size = max(1, clips // workers)
            overrides.append(f"spectrogram.clips_per_shard={{minimum: {size}, average: {size}, maximum: {size}}}")
        workspace = Workspace(folder, self.audio, rows, overrides)
        workspace.run("corpus")
        seconds, counters = workspace.run("spectrogram")
        if counters["decoded"] != clips:
            raise RuntimeError(f"expected {clips} clips decoded, found {counters}")
        shutil.rmtree(folder.parent)
        return seconds


def peer_seconds(name: str, audio: Path, scratch: Path, clips: int, processes: int) -> float:
    """Return the seconds of a peer's whole process, NaN when it died."""
    out = Path(tempfile.mkdtemp(dir=scratch))
    command = [sys.executable, "-m", "benchmarks.peers", name, str(audio), str(out / "features")]
    command += ["--clips", str(clips), "--processes", str(processes)]
    environment = os.environ | ONE_THREAD | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(out)}
    try:
        return seconds_of(
            lambda: subprocess.run(  # noqa: S603 - our own program
                command, env=environment, cwd=out, check=True, capture_output=True, timeout=600
            )
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        sys.stderr.write(f"{name}, {processes} processes, died: {(error.stderr or b'')[-1000:].decode()}\n")
        return float("nan")
    finally:
        shutil.rmtree(out)


def run(clips: int, peer_clips: int, repeats: int, dtype: str, processes: list[int]) -> list[dict[str, Any]]:
    """Measure everything and return the rows of the table."""
    with tempfile.TemporaryDirectory(prefix="sonolex-bench-") as temporary:
        scratch = Path(temporary)
        audio = scratch / "audio"
        paths = write_flacs(audio, max(clips, peer_clips))
        stage, absent = Sonolex(audio, scratch, dtype), set(missing())
        contenders: dict[str, tuple[Callable[[int], float], int]] = {}
        floors: dict[str, Callable[[], tuple[float, float]]] = {}
        for count in processes:
            floors[f"floor, {count}"] = partial(_floor_rates, paths[:120], count)
            contenders[f"sonolex, {count}"] = (partial(stage.seconds, workers=count), clips)
            for name in PEERS:
                if name not in absent:
                    measure = partial(peer_seconds, name, audio, scratch, processes=count)
                    contenders[f"{name}, {count}"] = (measure, peer_clips)
        measured = {name: partial(_rates, *contender) for name, contender in contenders.items()}
        times = interleave(floors | measured, repeats)
        parts = [floor(paths[:40]) for _ in range(repeats + 1)]

    rows: list[dict[str, Any]] = []
    for part in parts[0]:
        milliseconds = min(times_of[part] for times_of in parts)
        rows.append({"what": f"floor: {part}", "processes": 1, "ms per clip": milliseconds})
    net_of: dict[int, float] = {}
    for count in processes:
        floor_rates = summary([rate for rate, _ in times[f"floor, {count}"]])
        rate = floor_rates["best"]
        rows.append(
            {"what": "floor: all three", "processes": count, "net clips/s": rate, "median": floor_rates["median"]}
        )
        for name, (_, total) in contenders.items():
            who, _, number = name.partition(", ")
            if int(number) != count:
                continue
            nets = summary([net for net, _ in times[name]])
            wholes = summary([whole for _, whole in times[name]])
            net_of.setdefault(count, nets["best"])  # Sonolex is the first contender
            rows.append(
                {
                    "what": who,
                    "processes": count,
                    "clips": total,
                    "net clips/s": nets["best"],
                    "median": nets["median"],
                    "whole clips/s": wholes["best"],
                    "of the floor": nets["best"] / rate,
                    "sonolex is faster by": net_of[count] / nets["best"],
                }
            )
    rows += [{"what": f"{name}: not installed (requirements-bench.lock)"} for name in sorted(absent)]
    return rows


def _floor_rates(paths: list[Path], processes: int) -> tuple[float, float]:
    """Return the floor's clips/s as a contender's rates; it has no start-up time."""
    rate = floor_rate(paths, processes)
    return rate, rate


def _rates(seconds: Callable[[int], float], clips: int) -> tuple[float, float]:
    """Return (net, whole) clips/s of a contender that needs `seconds(n)` for n clips; net is NaN where noise dominates."""
    short, full = seconds(FEW), seconds(clips)
    net = (clips - FEW) / (full - short) if full > 1.2 * short else float("nan")
    return net, clips / full


def main(
    clips: Annotated[int, typer.Option(help="for Sonolex")] = 960,
    peer_clips: Annotated[int, typer.Option(help="for each peer")] = 240,
    repeats: int = 2,
    dtype: Annotated[str, typer.Option(help="of the stored frames")] = "float16",
    processes: Annotated[list[int], typer.Option()] = [1, 2],  # noqa: B006 - typer's way
    json: Annotated[Path | None, typer.Option(help="write the rows there")] = None,
) -> None:
    """Measure feature extraction from FLAC to stored frames."""
    rows = run(clips, peer_clips, repeats, dtype, processes)
    report("features", "10 s stereo 44.1 kHz FLAC -> 128 log-mel bands, stored", rows, json_path=json)


if __name__ == "__main__":
    typer.run(main)
