"""Exported models beside torch: size, speed, accuracy and difference of logits, in float32 and int8, from the waveform.

    python -m benchmarks.export FOLDER ROOT FOLD MODEL...

FOLDER holds an experiment that has run, and ROOT its audio. Every model is exported as ONNX and run on the fold's test
clips, one by one and on one thread. Logits are compared with those in `predictions/`.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
import torch

from pipeline.artifacts.clips import open_clips
from pipeline.artifacts.layout import Layout
from pipeline.artifacts.model import TrainedModel, open_model
from pipeline.artifacts.predictions import matrix, open_predictions
from pipeline.artifacts.vocabulary import open_vocabulary
from pipeline.inference.torch_module import sound_classifier
from pipeline.spectrogram.decoding import decode
from tools import export

ROUNDS = 3  # of which the fastest counts, clip by clip

Logits = Callable[[np.ndarray], np.ndarray]  # (1, class) of a waveform (1, sample)


class Row(NamedTuple):
    """Measurements of one model in one form."""

    form: str
    megabytes: float
    milliseconds: float  # a clip, median
    accuracy: float
    median_difference: float  # over clips, of a clip's largest difference of a logit
    largest_difference: float


def main() -> None:
    """Print a table row per model and form."""
    folder, root, fold, *names = sys.argv[1:]
    torch.set_num_threads(1)
    layout = Layout(Path(folder))
    for name in names:
        for row in measure(layout, Path(root), layout.models / name / fold / "0"):
            print(  # noqa: T201
                f"| `{name}` | {row.form} | {row.megabytes:.2f} | {row.milliseconds:.1f} | {row.accuracy:.2%} | "
                f"{row.median_difference:.1e} | {row.largest_difference:.1e} |",
                flush=True,
            )


def measure(layout: Layout, root: Path, path: Path) -> list[Row]:
    """Return the rows of one model: torch, ONNX in float32, and in int8."""
    model = open_model(path)
    name, fold, seed = path.parts[-3:]
    predictions = open_predictions(layout.predictions / name / fold / f"{seed}.parquet")
    waveforms = _waveforms(layout, root, predictions.list("clip_id"), model.metadata["front_end"]["sample_rate"])
    expected, targets = matrix(predictions, "logits"), matrix(predictions, "targets")
    forms = [("torch", (path / "weights.safetensors").stat().st_size, _torch(layout, model, name))]
    with tempfile.TemporaryDirectory() as temporary:
        for int8 in (False, True):
            out = Path(temporary) / f"{int8}.onnx"
            export.run(path, "onnx", out, int8=int8)
            forms.append((f"ONNX {'int8' if int8 else 'float32'}", out.stat().st_size, _onnx(out)))
    rows = []
    for (form, size, _), (logits, seconds) in zip(forms, _time([run for *_, run in forms], waveforms), strict=True):
        differences = np.abs(logits - expected).max(axis=1)
        accuracy = float((logits.argmax(axis=1) == targets.argmax(axis=1)).mean())
        rows.append(
            Row(form, size / 1e6, seconds * 1e3, accuracy, float(np.median(differences)), float(differences.max()))
        )
    return rows


def _waveforms(layout: Layout, root: Path, clip_ids: list[str], sample_rate: int) -> list[np.ndarray]:
    clips = open_clips(layout.clips)
    sources = dict(zip(clips.list("clip_id"), clips.list("source"), strict=True))
    settings = {"start": 0.0, "duration": 0.0, "sample_rate": sample_rate, "max_duration": 60.0}
    return [decode(root / sources[clip], **settings)[None] for clip in clip_ids]  # type: ignore[arg-type]


def _time(runs: list[Logits], waveforms: list[np.ndarray]) -> list[tuple[np.ndarray, float]]:
    """Return logits (clip, class) and the median seconds a clip of each; they take turns, clip by clip."""
    logits: list[list[np.ndarray]] = [[] for _ in runs]
    seconds = np.full((len(runs), len(waveforms)), np.inf)
    for clip, waveform in enumerate(waveforms):
        for _ in range(ROUNDS):
            for number, run in enumerate(runs):
                started = time.perf_counter()
                found = run(waveform)
                seconds[number, clip] = min(seconds[number, clip], time.perf_counter() - started)
                logits[number] = [*logits[number][:clip], found[0]]
    return [(np.stack(found), float(np.median(own))) for found, own in zip(logits, seconds, strict=True)]


def _torch(layout: Layout, model: TrainedModel, name: str) -> Logits:
    fold, vocabulary = model.metadata["fold"], None
    if model.metadata["reads"] == "tokens":
        vocabulary = open_vocabulary(layout.vocabulary(name.rpartition("-")[2], fold))
    classifier = sound_classifier(model, vocabulary)

    def run(waveform: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            logits: np.ndarray = classifier(torch.from_numpy(waveform)).numpy()
        return logits

    return run


def _onnx(path: Path) -> Logits:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options)

    def run(waveform: np.ndarray) -> np.ndarray:
        logits: np.ndarray = session.run(["logits"], {"waveform": waveform})[0]
        return logits

    return run


if __name__ == "__main__":
    main()
