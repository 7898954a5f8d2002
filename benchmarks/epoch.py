"""Benchmark of one epoch on a corpus like AudioSet, by the stages of the graph: clips/s, memory over time, waits for input.

    python -m benchmarks.epoch --clips 20000 --sources AUDIO_FOLDER --keep FOLDER

The corpus is made of the recordings of some folders (`benchmarks/recombining.py`): 527 classes with a long tail, one to six
a clip, and a test set of a twentieth. Settings are those of the recipe `audioset` with 64 mel bands, a vocabulary of eight
bands with 64 tokens each, batches of 64 clips, and balanced sampling. Stages run as processes, as `dvc repro` starts them;
`memory at 1/4`, `1/2` and `end` is anonymous memory of a stage and its workers, which stays level where memory does not grow
with the clips that were seen. `waiting` is the fraction of an epoch's time in which training waits for clips.
"""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.measuring import report
from benchmarks.processes import Usage
from benchmarks.recombining import SEPARATOR, Row, read_recordings, write_corpus
from benchmarks.workspace import Workspace

_FOLD, _SEED = "official", "0"
_VOCABULARY = "bands"
_TEST_PART = 20  # training clips for each test clip


def overrides(model: str, workers: int) -> list[str]:
    """Return the settings that differ from the recipe `audioset`."""
    return [
        "experiment.frame_models=[]",
        f"experiment.token_models=[{model}]",
        f"experiment.vocabularies=[{_VOCABULARY}]",
        "experiment.ensembles=[]",
        f"report.headline=[{model}-{_VOCABULARY}]",
        "report.attention=[]",
        "duplicates.search=false",  # all clips are made of the same recordings
        "spectrogram.front_end.n_mels=64",
        f"vocabularies.{_VOCABULARY}={{kind: bands, bands: 8, num_tokens: 64}}",
        "train.epochs=1",
        "train.sampling=balanced",
        "train.batch_size=64",
        f"execution.workers={workers}",
    ]


def stages(model: str) -> list[tuple[str, list[str]]]:
    """Return the stages in order with their command lines, as in dvc.yaml."""
    tokens = [_VOCABULARY, "--fold", _FOLD]
    run = [model, "--vocabulary", *tokens, "--seed", _SEED]
    return [
        ("code", []),
        ("corpus", []),
        ("spectrogram", []),
        ("duplicates", []),
        ("split", [_FOLD]),
        ("development", [_FOLD]),
        ("vocabulary", tokens),
        ("tokenize", tokens),
        ("train", run),
        ("evaluate", run),
    ]


def row_of(stage: str, usage: Usage, counters: dict[str, Any]) -> dict[str, Any]:
    """Return the row of a stage."""
    epochs = counters.get("timing", {}).get("epochs", [{}])
    clips = counters.get("clips", 0)
    return {
        "stage": stage,
        "s": usage.seconds,
        "processor s": usage.processor_seconds,
        "clips/s": clips / usage.seconds if clips else "",
        "processor ms per clip": 1000 * usage.processor_seconds / clips if clips else "",
        "peak MB": round(usage.peak / 1e6),
        **{f"memory at {name}, MB": round(usage.anonymous_at(part) / 1e6) for name, part in _TIMES.items()},
        "waiting": epochs[-1].get("input_fraction", "") if epochs else "",
    }


_TIMES = {"1/4": 0.25, "1/2": 0.5, "end": 0.95}


def run(workspace: Workspace, model: str) -> list[dict[str, Any]]:
    """Run all stages and return the rows of the table."""
    rows = []
    for stage, arguments in stages(model):
        usage, counters = workspace.measure(stage, *arguments)
        rows.append(row_of(stage, usage, counters))
        typer.echo(f"{stage}: {usage.seconds:.0f} s, {usage.processor_seconds:.0f} s of processor", err=True)
    return rows


def make_workspace(folder: Path, audio: Path, rows: list[Row], settings: list[str]) -> Workspace:
    """Return a workspace in which the stages read these clips."""
    return Workspace(folder, audio, rows, settings, recipe="audioset", label_separator=SEPARATOR)


def main(
    clips: Annotated[int, typer.Option(help="training clips, at least 527")] = 20_000,
    seconds: Annotated[float, typer.Option(help="of a clip, at most 10")] = 10.0,
    copies: Annotated[int, typer.Option(help="clips of the same sound, of which one is decoded")] = 1,
    sources: Annotated[list[Path], typer.Option(help="folder of recordings; none = synthesised ones")] = [],  # noqa: B006 - typer's way
    model: Annotated[str, typer.Option(help="entry of `models` that reads tokens")] = "token_transformer",
    workers: Annotated[int, typer.Option(help="processes of spectrogram and tokenize")] = 2,
    keep: Annotated[Path | None, typer.Option(help="folder to work in, which is not removed")] = None,
    json: Annotated[Path | None, typer.Option(help="write the rows there")] = None,
) -> None:
    """Measure one epoch, and the stages before it."""
    with tempfile.TemporaryDirectory(prefix="sonolex-bench-") as temporary:
        folder = keep or Path(temporary)
        (folder / "audio").mkdir(parents=True)
        test = max(clips // _TEST_PART, 527)
        recordings, counts = read_recordings(sources), {"training": clips, "test": test, "copies": copies}
        cuts = write_corpus(folder / "audio", recordings, **counts, seconds=seconds)
        rows = run(make_workspace(folder / "workspace", folder / "audio", cuts, overrides(model, workers)), model)
    report("epoch", f"one epoch on {clips:,} clips of {seconds:g} s, {workers} workers", rows, json_path=json)


if __name__ == "__main__":
    typer.run(main)
