"""`sonolex why`: trace one clip through every artifact, from its source to its predictions.

Missing artifacts have a line too, and so has an artifact that lacks the clip.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow.compute as pc
from rich.markup import escape
from rich.table import Table as Grid

from pipeline.artifacts.clips import CLIPS, ClipTable, link_of
from pipeline.artifacts.duplicates import open_duplicates, pairs_of
from pipeline.artifacts.layout import Layout
from pipeline.artifacts.predictions import PredictionTable, open_predictions
from pipeline.artifacts.settings import Metadata
from pipeline.artifacts.spectrogram import INDEX, IndexMetadata
from pipeline.artifacts.splits import SPLIT
from pipeline.artifacts.tables import Table, TableSchema
from pipeline.artifacts.tokens import TOKENS, TokenTable
from pipeline.artifacts.training_labels import TRAINING_LABELS, TrainingLabelTable
from pipeline.errors import ArtifactError, CorpusError
from pipeline.evaluation.metric_functions import to_scores

_TOKENS_SHOWN = 12
_MATCHES_SHOWN = 5
_TESTED = "role test"

Row = dict[str, Any]  # column -> value; one row of any table
M = TypeVar("M", bound=Metadata)


@dataclass(frozen=True)
class Finding:
    """Content of one artifact about the clip."""

    path: Path
    text: str
    wrong: bool = False  # the artifact is missing or damaged, lacks the clip, or records its failure
    absent: bool = False  # the artifact is valid and lacks the clip
    fold: str = ""  # of the artifact


def trace(clip_id: str, layout: Layout) -> list[Finding]:
    """Return the content of each artifact about a clip, in the order of the pipeline.

    Raises CorpusError with the closest ids when the manifest has no such clip.
    """
    findings = [_look(layout.clips, CLIPS.open, clip_id, _describe_clip)]
    if findings[0].absent:
        _reject_unknown(clip_id, findings[0].path)
    labels = _look(layout.training_labels, TRAINING_LABELS.open, clip_id, _describe_labels)
    if not labels.wrong:
        findings.append(labels)
    findings.append(_look(layout.spectrogram_index, INDEX.open, clip_id, _describe_frames))
    findings.append(_look_at_duplicates(layout.duplicates, clip_id))
    splits = _look_at_all(layout.found_splits(), layout.splits, SPLIT, clip_id, _describe_role)
    tests = {split.fold for split in splits if split.text == _TESTED}
    findings += splits
    findings += _look_at_all(layout.found_tokens(), layout.token_folder, TOKENS, clip_id, _describe_tokens)
    predictions = layout.found_predictions()
    if not predictions:
        findings.append(Finding(layout.predictions, "no predictions yet", wrong=True))
    for path in predictions:
        finding = _look(path, open_predictions, clip_id, _describe_prediction)
        # Predictions are of the fold's test clips: a clip is rightly absent from those of other folds.
        if finding.fold in tests or not finding.absent:
            findings.append(finding)
    return findings


def findings_table(clip_id: str, findings: list[Finding]) -> Grid:
    """Return the findings as a table for the terminal."""
    grid = Grid(title=escape(clip_id), title_style="bold", show_lines=False)
    grid.add_column("artifact", no_wrap=True)
    grid.add_column("content about the clip")
    for finding in findings:
        grid.add_row(escape(str(finding.path)), escape(finding.text), style="red" if finding.wrong else "")
    return grid


def _look(
    path: Path,
    open_table: Callable[[Path], Table[M]],
    clip_id: str,
    describe: Callable[[Table[M], Row], tuple[str, bool]],
) -> Finding:
    try:
        table = open_table(path)
    except ArtifactError as error:
        return Finding(path, "missing" if not path.exists() else str(error), wrong=True)
    rows = table.columns.filter(pc.equal(table["clip_id"], clip_id)).to_pylist()
    fold = str(table.metadata.get("fold", ""))
    if not rows:
        return Finding(path, f"the clip is not in it ({len(table)} others are)", wrong=True, absent=True, fold=fold)
    text, wrong = describe(table, rows[0])
    return Finding(path, text, wrong, fold=fold)


def _look_at_duplicates(path: Path, clip_id: str) -> Finding:
    try:
        duplicates = open_duplicates(path)
    except ArtifactError as error:
        return Finding(path, "missing" if not path.exists() else str(error), wrong=True)
    if not duplicates.metadata["searched"]:
        return Finding(path, "near-duplicates were not searched")
    found = []
    for row in pairs_of(duplicates, clip_id).to_pylist():
        first = row["clip_id"] == clip_id
        lag = (
            f"{abs(row['lag']):g} s {'later' if (row['lag'] > 0) == first else 'earlier'} here"
            if row["lag"]
            else "no lag"
        )
        found.append(f"{row['other_id' if first else 'clip_id']} (correlation {row['correlation']:.3f}, {lag})")
    return Finding(path, f"near-duplicate of {', '.join(found)}" if found else "no near-duplicates")


def _look_at_all(
    paths: list[Path],
    folder: Path,
    schema: TableSchema[M],
    clip_id: str,
    describe: Callable[[Table[M], Row], tuple[str, bool]],
) -> list[Finding]:
    if not paths:
        return [Finding(folder, "missing", wrong=True)]
    return [_look(path, schema.open, clip_id, describe) for path in paths]


def _reject_unknown(clip_id: str, path: Path) -> None:
    ids = CLIPS.open(path)["clip_id"]
    parts = ids.filter(pc.match_substring(ids, clip_id, ignore_case=True))[:_MATCHES_SHOWN].to_pylist()
    close = parts or difflib.get_close_matches(clip_id, ids.to_pylist(), n=_MATCHES_SHOWN, cutoff=0.5)
    hint = f"close to it: {', '.join(close)}" if close else f"none of {len(ids)} ids is close to it"
    raise CorpusError(f"{path}: clip_id: expected the id of a clip, found {clip_id!r}; {hint}")


def _describe_clip(clips: ClipTable, row: Row) -> tuple[str, bool]:
    labels = ", ".join(clips.metadata["classes"][label] for label in row["labels"]) or "no class"
    source = f"{row['source']} in which {row['member']}" if row["member"] else row["source"]
    end = f"{row['start'] + row['duration']:g} s" if row["duration"] else "its end"
    place = f"{source}, {row['start']:g} s to {end}"
    origin = f"group {row['group'] or 'none'}, fold {row['fold'] or 'none published'}"
    content = row["content"] or "none: the file was missing"
    return f"{labels}; {place}; {origin}; digest {content}", not row["content"]


def _describe_labels(table: TrainingLabelTable, row: Row) -> tuple[str, bool]:
    classes = table.metadata["classes"]
    shares = dict(enumerate(row["soft"]))
    names = [classes[label] + (f" ({shares[label]:.0%})" if shares else "") for label in row["labels"]]
    return f"trained on as {', '.join(names) or 'no class'}, by {table.metadata['table']}", False


def _describe_role(_: Table, row: Row) -> tuple[str, bool]:
    return f"role {row['role']}", False


def _describe_frames(index: Table[IndexMetadata], row: Row) -> tuple[str, bool]:
    if row["status"] != "ok":
        return f"failed, {row['reason']}: {row['message']}", True
    metadata = index.metadata["front_end"]
    count = row["num_frames"]
    seconds = count / metadata["frame_rate"]
    mean = row["sum"] / max(1, count * metadata["n_mels"])
    place = f"shard {row['shard']}, frames {row['start']} to {row['start'] + count - 1}"
    return f"{place}: {count} frames, {seconds:.2f} s, mean {mean:.2f} {metadata['units']}", False


def _describe_tokens(tokens: TokenTable, row: Row) -> tuple[str, bool]:
    codebooks = row["tokens"]
    size = tokens.metadata["vocabulary_size"]
    books = []
    for book in codebooks:
        start = " ".join(map(str, book[:_TOKENS_SHOWN])) + (" ..." if len(book) > _TOKENS_SHOWN else "")
        books.append(f"{len(book)} tokens, {len(set(book))} distinct of {size}: {start}")
    return "; ".join(books), not any(codebooks)


def _describe_prediction(predictions: PredictionTable, row: Row) -> tuple[str, bool]:
    """Rank 1 is the class with the highest logit; ties get the worst rank, so that a tie does not count as a hit."""
    classes = predictions.metadata["classes"]
    logits, targets = np.array(row["logits"]), np.array(row["targets"])
    scores = to_scores(logits[None], link_of(predictions.metadata))[0]
    true = [
        f"{classes[i]} ranks {int((logits >= logits[i]).sum())} ({scores[i]:.0%})" for i in np.flatnonzero(targets == 1)
    ]
    best = int(logits.argmax())
    first = "" if targets[best] == 1 else f"; first is {classes[best]} ({scores[best]:.0%})"
    return f"{row['role']}: {', '.join(true) or 'no true class'} of {len(classes)}{first}", False
