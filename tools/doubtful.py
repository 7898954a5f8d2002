"""`sonolex doubtful`: the clips whose labels are most likely wrong, as a table, and as a page to listen through them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from pipeline.artifacts.clips import ClipTable, open_clips
from pipeline.artifacts.layout import Layout
from pipeline.artifacts.spectrogram import open_spectrogram
from pipeline.artifacts.training_labels import TrainingLabelTable, open_training_labels
from pipeline.corpora.base import AudioParams
from pipeline.evaluation.choosing import ScoredExperiment
from pipeline.evaluation.enhancement import LabelParams
from pipeline.evaluation.label_quality import Labelled, LabelQuality, collect_labelled, rank_labels, score_folds
from pipeline.grid import ExperimentParams
from pipeline.params import load_params
from pipeline.reporting.doubtful import doubtful_clips, write_doubtful
from pipeline.reporting.gallery import ClipCard, GallerySources, clip_cards

_PRINTED = 20  # clips


def run(models: Sequence[str], *, count: int, page: Path, layout: Layout, params_path: Path, console: Console) -> None:
    """Rank the labels of all clips that the experiment has out-of-fold predictions of; print and show the worst."""
    experiment = load_params(ExperimentParams, "experiment", params_path)
    chosen = list(models) or load_params(LabelParams, "labels", params_path).models
    clips, replacing = open_clips(layout.clips), open_training_labels(layout.training_labels)
    scores = score_folds(experiment, chosen, layout)
    labelled = collect_labelled(scores, clips, replacing)
    quality = rank_labels(labelled)
    classes = clips.metadata["classes"]
    console.print(_table(labelled, quality, classes))
    shown = [labelled.clip_ids[row] for row in quality.order[:count].tolist()]
    audio = load_params(AudioParams, "corpus", params_path).root
    items = doubtful_clips(_cards(shown, scores, clips, layout, audio), labelled, quality, classes)
    num_doubtful = int(quality.doubtful.sum())
    write_doubtful(
        page,
        items,
        labelled,
        classes=classes,
        corpus=clips.metadata["corpus"],
        models=chosen,
        num_doubtful=num_doubtful,
        overrides=_overrides(replacing, classes),
    )
    console.print(
        f"{num_doubtful} of {len(labelled.clip_ids)} clips have labels that confident learning counts as wrong; "
        f"{page} plays the first {len(shown)}, and writes the table for labels.use",
        soft_wrap=True,
    )


def _table(clips: Labelled, quality: LabelQuality, classes: Sequence[str]) -> Grid:
    grid = Grid(title="most doubtful labels")
    for name in ("clip", "labels", "likeliest class"):
        grid.add_column(name)
    for name in ("probability", "label quality"):
        grid.add_column(name, justify="right")
    for row in quality.order[:_PRINTED].tolist():
        best = int(clips.scores[row].argmax())
        own = ", ".join(classes[i] for i in np.flatnonzero(clips.labels[row]).tolist()) or "none"
        cells = (clips.clip_ids[row], own, classes[best])
        grid.add_row(*map(escape, cells), f"{clips.scores[row, best]:.0%}", f"{quality.values[row]:.2f}")
    return grid


def _cards(
    shown: Sequence[str], scores: ScoredExperiment, clips: ClipTable, layout: Layout, audio: Path
) -> list[ClipCard]:
    rows = clips.columns.filter(pc.is_in(clips["clip_id"], pa.array(shown, pa.string())))
    sources = GallerySources(
        clips={row["clip_id"]: row for row in rows.to_pylist()},
        classes=clips.metadata["classes"],
        spectrogram=open_spectrogram(layout.spectrogram),
        vocabularies={},
        tokens={},
        explanations={},
        audio_path=audio,
    )
    return clip_cards(shown, scores, sources)


def _overrides(table: TrainingLabelTable, classes: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Return the rows of a table that people wrote, which a new one would otherwise take away."""
    if table.metadata["fold"]:
        return []
    return [
        (row["clip_id"], [classes[i] for i in row["labels"]]) for row in table.columns.to_pylist() if not row["soft"]
    ]
