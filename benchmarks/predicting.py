"""Benchmark of `sonolex predict`, files to scores: compared with a lower bound and with Hugging Face's pipeline.

    python -m benchmarks.predicting --clips 400 --repeats 3 [--audio /path/to/ESC-10/audio] [--cpu]

The models have the sizes of ESC-50's recipe and one epoch of training, which suffices for speed. The floor is what decoding,
features and forward passes of 16 clips take in bare library calls, one after the other, on as many processes as cores. Every
contender runs in a process of its own, which is warm before it is measured; the start is measured by itself, as the
seconds of a whole `sonolex predict` for one file. With `--cpu`, processor time is counted, for a machine that has other
work: rates are those of cores that never wait.
"""

import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
import soundfile
import soxr
import typer
from rich.console import Console

from benchmarks.audio import write_flacs
from benchmarks.measuring import interleave, report, seconds_of, summary
from benchmarks.workspace import ROOT, Workspace
from pipeline.artifacts.layout import Layout
from pipeline.execution.threads import num_cores, use_threads
from pipeline.inference.bundle import open_bundle
from pipeline.spectrogram.kaldi import KaldiParams, mel_filters
from tools import bundle, predict

_STAGES = (
    "corpus",
    "spectrogram",
    "duplicates",
    "split 1",
    "development 1",
    "vocabulary kmeans --fold 1",
    "tokenize kmeans --fold 1",
)

Clock: TypeAlias = Callable[[], float]

WARM, BATCH = 16, 16  # clips
PATCHES = "ast_patches"  # as Hugging Face's: patches of 16 x 16 with a stride of 10
MODELS = ("ast", "token_transformer-kmeans", PATCHES)
SETTINGS = (
    "experiment.frame_models=[ast, ast_patches]",
    "experiment.token_models=[token_transformer]",
    "experiment.vocabularies=[kmeans]",
    "experiment.ensembles=[]",
    "report.attention=[]",
    "spectrogram.front_end.n_mels=128",
    "vocabularies.kmeans.num_tokens=500",
    "models.ast.stem.channels=[32, 64, 64]",
    "models.ast_patches={kind: network, stem: {kind: patches, stride_frames: 10, stride_bands: 10}, head: {kind: "
    "class_token, distillation_token: true}}",
    "train.epochs=1",
    "execution.workers=1",
)


def make_bundles(folder: Path, clips: int = 24) -> dict[str, Path]:
    """Train the models on a few clips, and return the bundle of each."""
    rows = [
        {"path": path.name, "label": f"class {number % 10}", "fold": f"{1 + number // 10 % 2}"}
        for number, path in enumerate(write_flacs(folder / "train", max(clips, 20), seconds=5.0))
    ]
    workspace = Workspace(folder / "workspace", folder / "train", rows, SETTINGS)
    for stage in _STAGES:
        workspace.run(*stage.split())
    bundles = {}
    for name in MODELS:
        model, _, vocabulary = name.partition("-")
        options = ["--vocabulary", vocabulary] if vocabulary else []
        for stage in ("train", "evaluate"):
            workspace.run(stage, model, "--fold", "1", "--seed", "0", *options)
        bundles[name] = folder / name
        bundle.run(
            name,
            bundles[name],
            folds=["1"],
            params_path=workspace.folder / "params.yaml",
            layout=Layout(workspace.folder),
            console=Console(quiet=True),
        )
    return bundles


def floor(path: Path, paths: list[Path], clock: Clock = time.perf_counter) -> dict[str, float]:
    """Return the milliseconds per clip of each part, on one thread: medians over files, and over batches."""
    import torch

    use_threads(1)
    classifier = open_bundle(path).classifier
    front_end = KaldiParams(**classifier.metadata["params"])
    window = np.hanning(front_end.win_length).astype(np.float32)
    filters = np.ascontiguousarray(mel_filters(front_end).T.astype(np.float32))
    times: dict[str, list[float]] = {"decode and resample": [], "fft and mel": [], "tokens": [], "forward": []}
    clips: list[np.ndarray] = []
    for file in [*paths[:2], *paths]:  # the first two warm up the libraries
        started = clock()
        samples, rate = soundfile.read(file, dtype="float32")
        mono = samples if samples.ndim == 1 else np.ascontiguousarray(samples[:, 0]) + samples[:, 1]
        waveform = soxr.resample(mono, rate, front_end.sample_rate, "HQ")
        decoded = clock()
        windows = np.lib.stride_tricks.sliding_window_view(waveform, front_end.win_length)[:: front_end.hop_length]
        spectrum = np.fft.rfft(windows * window, front_end.n_fft)
        clips.append(np.log(np.maximum((spectrum.real**2 + spectrum.imag**2) @ filters, 1e-7)).astype(np.float32))
        times["decode and resample"].append(1e3 * (decoded - started))
        times["fft and mel"].append(1e3 * (clock() - decoded))
    clips = clips[2:]
    network, inputs = _network(classifier), clips
    if vocabularies := list(classifier.vocabularies.values()):
        codes = np.ascontiguousarray(vocabularies[0].codebooks[0])
        inputs = [_search(clip, codes, times["tokens"], clock) for clip in clips]
    shortest = min(map(len, inputs))
    with torch.no_grad():
        for start in range(0, len(inputs) - BATCH + 1, BATCH):
            batch = torch.from_numpy(np.stack([clip[:shortest] for clip in inputs[start : start + BATCH]]))
            batch = batch[:, None] if vocabularies else batch
            times["forward"].append(1e3 / BATCH * _time(partial(network, batch, None), clock))
    return {name: float(np.median(values)) for name, values in times.items() if values}


def _network(classifier: Any) -> Any:
    from pipeline.evaluation.network_prediction import build_network

    return build_network(classifier.members[0].model)


def _search(frames: np.ndarray, codes: np.ndarray, times: list[float], clock: Clock) -> np.ndarray:
    """Return the nearest code of every frame, by one product: as many features as codes have."""
    started = clock()
    features = frames[:, : codes.shape[1]]
    tokens = (features @ codes.T - 0.5 * (codes**2).sum(axis=1)).argmax(axis=1)
    times.append(1e3 * (clock() - started))
    return np.asarray(tokens)


def sonolex_rate(path: Path, paths: list[Path], clock: Clock) -> float:
    """Return the clips/s of `sonolex predict` in this process, once it is warm."""
    options = predict.Options(to="csv", out=Path(tempfile.mkdtemp()) / "out.csv", threads=num_cores())

    def run(files: list[Path]) -> None:
        predict.run(path, list(map(str, files)), options, Console(file=io.StringIO()), Console(file=io.StringIO()))

    run(paths[:WARM])
    return _rate(len(paths), partial(run, paths), clock)


def hugging_face_rate(width: int, depth: int, heads: int, frames: int, paths: list[Path], clock: Clock) -> float:
    """Return the clips/s of transformers' pipeline with an AST of this size, once it is warm, on all cores."""
    hub: Any = import_module("transformers")  # typed in part

    config = hub.ASTConfig(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=2 * width,
        max_length=frames, num_mel_bins=128, num_labels=10,
    )  # fmt: skip
    model = hub.ASTForAudioClassification(config).eval()
    classify = hub.AudioClassificationPipeline(model, feature_extractor=hub.ASTFeatureExtractor(max_length=frames))

    def run(files: list[Path]) -> None:
        for _ in classify((_read(file) for file in files), batch_size=BATCH):
            pass

    run(paths[:WARM])
    return _rate(len(paths), partial(run, paths), clock)


def _time(work: Callable[[], object], clock: Clock) -> float:
    started = clock()
    work()
    return clock() - started


def _rate(clips: int, work: Callable[[], object], clock: Clock) -> float:
    """Return clips/s; where processor time is counted, those of all cores."""
    return clips / _time(work, clock) * (num_cores() if clock is time.process_time else 1)


def _read(path: Path) -> dict[str, Any]:
    """Return a file as the pipeline takes it where there is no ffmpeg."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return {"raw": samples.mean(axis=1), "sampling_rate": rate}


def start_seconds(path: Path, file: Path) -> float:
    """Return the seconds of a whole `sonolex predict` for one file."""
    command = [sys.executable, "-m", "tools.sonolex", "predict", str(path), str(file)]
    return seconds_of(partial(subprocess.run, command, cwd=ROOT, check=True, capture_output=True))


def run(audio: Path | None, clips: int, repeats: int, clock: Clock = time.perf_counter) -> list[dict[str, Any]]:
    """Measure everything and return the rows of the table."""
    cores = num_cores()
    with tempfile.TemporaryDirectory(prefix="sonolex-bench-") as temporary:
        bundles = make_bundles(Path(temporary))
        files = (
            sorted(audio.glob("*.*"))[:clips] if audio else write_flacs(Path(temporary) / "audio", clips, seconds=5.0)
        )
        contenders: dict[str, Callable[[], float]] = {}
        for name, path in bundles.items():
            contenders[f"floor: {name}"] = partial(_floor_rate, path, files, cores, clock)
            contenders[f"sonolex predict: {name}"] = partial(_in_process, sonolex_rate, path, files, clock)
        peer = partial(hugging_face_rate, 128, 2, 4, 498)
        contenders["transformers' pipeline: AST of the same size"] = partial(_in_process, peer, files, clock)
        rates = interleave(contenders, repeats)
        starts = {name: [start_seconds(path, files[0]) for _ in range(repeats)] for name, path in bundles.items()}
        parts = {name: floor(path, files[:64], clock) for name, path in bundles.items()}
    return _rows(rates, starts, parts, cores)


def _rows(
    rates: dict[str, list[float]], starts: dict[str, list[float]], parts: dict[str, dict[str, float]], cores: int
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name, values in rates.items():
        who, _, model = name.partition(": ")
        row: dict[str, Any] = {"what": name, "cores": cores, "clips/s": summary(values)["best"]}
        row["median"] = summary(values)["median"]
        if who == "sonolex predict":
            row["of the floor"] = row["median"] / summary(rates[f"floor: {model}"])["median"]
            row["first answer, s"] = min(starts[model])
        rows.append(row)
    for model, times in parts.items():
        rows += [{"what": f"{model}: {part}", "cores": 1, "ms per clip": value} for part, value in times.items()]
    return rows


def _floor_rate(path: Path, paths: list[Path], processes: int, clock: Clock) -> float:
    """Return the clips/s of the floor with several processes, each on its share of the files."""
    shares = [paths[number::processes] for number in range(processes)]
    with ProcessPoolExecutor(processes, get_context("spawn"), initializer=use_threads, initargs=(1,)) as pool:
        return sum(
            1e3 / sum(times.values()) for times in pool.map(floor, [path] * processes, shares, [clock] * processes)
        )


def _in_process(rate: Callable[..., float], *arguments: Any) -> float:
    """Return what a function measures in a new process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(rate, *arguments).result()


def main(
    audio: Annotated[Path | None, typer.Option(help="folder of recordings; by default FLACs are made")] = None,
    clips: int = 400,
    repeats: int = 2,
    cpu: Annotated[bool, typer.Option(help="count processor time: for a machine that has other work")] = False,
    json: Annotated[Path | None, typer.Option(help="write the rows there")] = None,
) -> None:
    """Measure prediction from files to scores."""
    rows = run(audio, clips, repeats, time.process_time if cpu else time.perf_counter)
    report("predicting", "files of 5 s -> scores of classes", rows, json_path=json)


if __name__ == "__main__":
    typer.run(main)
