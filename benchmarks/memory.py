"""Benchmark of the peak memory of every stage over the size of the corpus, which it should not depend on.

    python -m benchmarks.memory --clips 400 --clips 4000 --clips 40000 --plot benchmarks/memory.png

The corpus is one recording of eight minutes per fold, with segments of one second as clips: many clips from few files.
Stages run as processes in a temporary workspace; the peak is the one in each stage's report.
"""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import soundfile
import typer

from benchmarks.audio import synthesise
from benchmarks.measuring import report
from benchmarks.workspace import Workspace

_SECONDS = 480.0  # of the recording
_FOLDS = 5
_FOLD, _SEED, _MODEL = "1", "0", "token_transformer"
_NAME = f"{_MODEL}-kmeans"  # the model with its vocabulary
_OVERRIDES = [
    "experiment.frame_models=[]",
    f"experiment.token_models=[{_MODEL}]",
    f"experiment.folds=['{_FOLD}']",
    "experiment.ensembles=[]",
    f"report.headline=[{_NAME}]",
    "report.attention=[]",
    "train.epochs=1",
    "train.batch_size=64",
    f"models.{_MODEL}.encoder.width=32",
    f"models.{_MODEL}.encoder.depth=1",
    f"models.{_MODEL}.encoder.heads=2",
    f"models.{_MODEL}.stem.channels=[4, 8, 8]",
    "vocabularies.kmeans.sample_frames=40000",
    "vocabularies.kmeans.num_tokens=128",
]


def stages() -> list[tuple[str, list[str]]]:
    """Return the stages in order with their command lines, as in dvc.yaml."""
    tokens = ["kmeans", "--fold", _FOLD]
    model = [_MODEL, "--vocabulary", *tokens, "--seed", _SEED]
    return [
        ("corpus", []),
        ("spectrogram", []),
        ("duplicates", []),
        ("split", [_FOLD]),
        ("development", [_FOLD]),
        ("vocabulary", tokens),
        ("tokenize", tokens),
        ("train", model),
        ("evaluate", model),
        ("thresholds", []),
        ("ngram_perplexity", tokens),
        ("report", []),
    ]


def run(sizes: list[int], keep: Path | None = None) -> list[dict[str, Any]]:
    """Run every stage at every size and return the rows of the table: a row per stage, a column per size."""
    rows: list[dict[str, Any]] = [{"stage": stage} for stage, _ in stages()]
    with tempfile.TemporaryDirectory(prefix="sonolex-bench-", dir=keep) as temporary:
        audio = Path(temporary) / "audio"
        audio.mkdir()
        for fold in range(_FOLDS):
            recording = synthesise(_SECONDS, 16000, seed=fold, channels=1)
            soundfile.write(audio / f"fold{fold}.wav", recording, 16000, subtype="PCM_16")
        for size in sizes:
            starts = np.linspace(0, _SECONDS - 1.1, size)
            cuts = [
                {
                    "path": f"fold{number % _FOLDS}.wav",
                    "label": f"{number // _FOLDS % 4}",
                    "fold": f"{1 + number % _FOLDS}",
                    "start": f"{start:.5f}",
                    "duration": "1",
                }
                for number, start in enumerate(starts)
            ]
            workspace = Workspace(Path(temporary) / f"{size}", audio, cuts, _OVERRIDES)
            for row, (stage, arguments) in zip(rows, stages(), strict=True):
                seconds, counters = workspace.run(stage, *arguments)
                row[f"{size} clips, MB"] = round(counters["peak_memory_bytes"] / 1e6) if counters else ""
                row[f"{size} clips, s"] = round(seconds, 1)
    return rows


def draw(rows: list[dict[str, Any]], sizes: list[int], path: Path) -> None:
    """Draw the peaks over the number of clips."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for row in rows:
        peaks = [row[f"{size} clips, MB"] for size in sizes]
        if all(isinstance(peak, int) for peak in peaks):
            axes.plot(sizes, peaks, marker="o", label=row["stage"])
    axes.set(xscale="log", xlabel="clips of one second", ylabel="peak memory, MB", ylim=(0, None))
    axes.legend(fontsize="small", ncols=2)
    figure.savefig(path, dpi=120)


def main(
    clips: Annotated[list[int], typer.Option()] = [400, 4000],  # noqa: B006 - typer's way
    plot: Annotated[Path | None, typer.Option(help="draw the curves there")] = None,
    json: Annotated[Path | None, typer.Option(help="write the rows there")] = None,
) -> None:
    """Measure the memory of every stage."""
    rows = run(clips)
    report("memory", "peak memory of each stage, its workers included", rows, json_path=json)
    if plot is not None:
        draw(rows, clips, plot)


if __name__ == "__main__":
    typer.run(main)
