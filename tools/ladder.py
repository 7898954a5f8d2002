"""From plain counts to transformers: every model of the experiment by accuracy, with what it costs.

Bits a second are those of a coder of single words, from the words' counts over the vocabulary's sample. Stored bytes are
what training reads: one fold's table of sentences as it lies on disk, or all log-mel frames.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table as Grid

from pipeline.artifacts.spectrogram import open_spectrogram
from pipeline.artifacts.tokens import open_tokens
from pipeline.artifacts.vocabulary import open_vocabulary
from pipeline.reporting.summary import ModelSummary, read_summary, spread, summarise, training_times

COLUMNS = ("model", "accuracy", "mAP", "parameters", "words/s", "bits/s", "training clips/s", "stored")


@dataclass(frozen=True)
class Source:
    """What the models read that read one thing, means over folds."""

    words_per_second: float | None  # over all codebooks; None for frames
    bits_per_second: float | None
    num_bytes: int


def open_sources(data: Path, folds: list[str]) -> dict[str, Source]:
    """Return what there is to read: "" for the frames, and each vocabulary's sentences by its name."""
    spectrogram = open_spectrogram(data / "spectrogram")
    usable = spectrogram.index.columns.filter(pc.equal(spectrogram.index["status"], "ok"))
    seconds = pc.sum(usable["num_frames"]).as_py() / spectrogram.frame_rate
    sources = {"": Source(None, None, _size(spectrogram.frames_path))}
    for path in sorted((data / "vocabulary").glob("*/")):
        words, bits, sizes = [], [], []
        for fold in folds:
            tokens_path = data / "tokens" / path.name / f"{fold}.parquet"
            if (path / f"{fold}.zarr").exists() and tokens_path.exists():
                words.append(len(open_tokens(tokens_path)["tokens"].combine_chunks().flatten().flatten()) / seconds)
                bits.append(open_vocabulary(path / f"{fold}.zarr").facts["fit"]["bits_per_second"])
                sizes.append(_size(tokens_path))
        if words:
            sources[path.name] = Source(float(np.mean(words)), float(np.mean(bits)), round(float(np.mean(sizes))))
    return sources


def rows(summaries: list[ModelSummary], sources: dict[str, Source], times: Mapping[str, float]) -> list[list[str]]:
    """Return the table's cells, the lowest accuracy first; ensembles, which read several things, are left out.

    `times` are the seconds of training a run by model, where this machine has trained it; the speed of others is blank.
    """
    cells = []
    for summary in sorted(summaries, key=lambda summary: summary.mean["accuracy"]):
        if summary.ensemble:
            continue
        model = summary.model.removesuffix("-pretrained")
        name = max((name for name in sources if name and model.endswith(f"-{name}")), key=len, default="")
        source = sources[name if summary.reads == "tokens" else ""]
        rates = ["" if rate is None else f"{rate:,.0f}" for rate in (source.words_per_second, source.bits_per_second)]
        seconds = times.get(summary.model)
        speed = f"{summary.clips_seen / seconds:,.0f}" if seconds else ""
        spreads = [spread(summary, metric, percent=True) for metric in ("accuracy", "mAP")]
        stored = f"{source.num_bytes / 1e6:,.2f} MB"
        cells.append([summary.model, *spreads, f"{summary.num_parameters:,}", *rates, speed, stored])
    return cells


def run(summary_path: Path, data: Path, reports_path: Path, console: Console, *, markdown: bool) -> None:
    """Print the ladder of the last run. Raises ArtifactError while there is none."""
    runs = read_summary(summary_path)
    sources = open_sources(data, list(dict.fromkeys(run.fold for run in runs)))
    cells = rows(summarise(runs), sources, training_times(runs, reports_path))
    if markdown:
        lines = [COLUMNS, ("---", *("---:" for _ in COLUMNS[1:])), *cells]
        console.print(
            "\n".join(f"| {' | '.join(line)} |" for line in lines), soft_wrap=True, markup=False, highlight=False
        )
        return
    table = Grid(title="The ladder", title_style="bold")
    for number, name in enumerate(COLUMNS):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for line in cells:
        table.add_row(*line)
    console.width = max(console.width, console.measure(table, options=console.options.update(max_width=1000)).maximum)
    console.print(table)


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
