"""Benchmark of the time to a prediction against the length of a sound, 10 to 600 s, on one thread.

    python -m benchmarks.latency [--plot benchmarks/latency.png] [--repeats 3]

Networks have the sizes of `recipes/base.yaml` and random weights, which take as long as trained ones. A sound is a FLAC file
of noise at 16 kHz; time is the processor's, from the file to scores, best of the repeats, by what `sonolex predict` calls.
`windows` predicts in windows of 10 s without overlap, the others the file as a whole.
"""

import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import soundfile
import torch
import typer
from matplotlib.figure import Figure

from benchmarks.workspace import ROOT
from pipeline.artifacts.model import InputMetadata, ModelCard, TrainedModel
from pipeline.execution.threads import use_threads
from pipeline.inference.classifier import Classifier, Member
from pipeline.inference.predicting import predict_files
from pipeline.inference.prediction import Failure
from pipeline.inference.windows import Windowing
from pipeline.models.network import Network, NetworkParams
from pipeline.models.registry import load_model_params
from pipeline.params import load_params
from pipeline.spectrogram.settings import SpectrogramParams

SECONDS = (10, 30, 60, 120, 300, 600)
MODELS = ("ast", "cnn", "psla")
WINDOW = 10.0  # seconds
_CLASSES = [str(number) for number in range(50)]


def build(name: str) -> Classifier:
    """Return an untrained network of an entry of `recipes/base.yaml`."""
    path = ROOT / "recipes" / "base.yaml"
    params, front_end = load_model_params(name, path), load_params(SpectrogramParams, "spectrogram", path).metadata
    assert isinstance(params, NetworkParams)
    torch.manual_seed(0)
    about: InputMetadata = {
        "n_mels": front_end["n_mels"],
        "log_floor": front_end["log_floor"],
        "normalisation": {"kind": "corpus", "std_scale": 1.0, "mean": -8.0, "std": 4.0},
    }
    weights = {key: array.numpy() for key, array in Network(params, about, len(_CLASSES)).state_dict().items()}
    card: ModelCard = {
        "model": name, "params": params.model_dump(mode="json"), "classes": _CLASSES, "label_kind": "one",
        "reads": "frames", "input": about, "source": "", "front_end": front_end, "fold": "", "seed": 0,
        "num_parameters": 0, "clips_seen": 0, "weights": "",
    }  # fmt: skip
    return Classifier((Member(TrainedModel(path, weights, card), None),), np.full(len(_CLASSES), 0.5))


def measure(classifier: Classifier, path: Path, windowing: Windowing | None, repeats: int) -> float:
    """Return processor seconds from a file to its scores."""
    taken = []
    for _ in range(repeats):
        began = time.process_time()
        (found,) = predict_files(classifier, [path], windowing, threads=1)
        assert not isinstance(found, Failure), found
        taken.append(time.process_time() - began)
    return min(taken)


def draw(rows: dict[str, list[float]], path: Path) -> None:
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for name, seconds in rows.items():
        axes.loglog(SECONDS, seconds, marker="o", label=name)
    axes.set(xlabel="length of the sound (s)", ylabel="processor time to scores (s), one thread")
    axes.legend()
    figure.savefig(path, dpi=110)


def main(
    plot: Annotated[Path | None, typer.Option(help="PNG to write")] = None,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    use_threads(1)
    torch.set_num_threads(1)
    ways = [(name, None) for name in MODELS] + [("ast", Windowing(WINDOW, WINDOW))]
    rows: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{seconds}.flac" for seconds in SECONDS]
        generator = np.random.default_rng(0)
        for path, seconds in zip(paths, SECONDS, strict=True):
            soundfile.write(path, (0.1 * generator.standard_normal(16000 * seconds)).clip(-1, 1), 16000)
        typer.echo("| model | " + " | ".join(f"{seconds} s" for seconds in SECONDS) + " |")
        typer.echo("|---|" + "---:|" * len(SECONDS))
        for name, windowing in ways:
            classifier = build(name)
            measure(classifier, paths[0], windowing, 1)  # warm
            label = name if windowing is None else f"{name}, windows of {WINDOW:g} s"
            rows[label] = [measure(classifier, path, windowing, repeats) for path in paths]
            typer.echo(f"| `{label}` | " + " | ".join(f"{seconds:.2f}" for seconds in rows[label]) + " |")
    if plot:
        draw(rows, plot)


if __name__ == "__main__":
    typer.run(main)
