"""Metrics of predictions against a table of labels: a model on a new test set, evaluated without training.

The metrics are those of the report (`pipeline/evaluation/reported/`), over files, never over windows.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.artifacts.clips import LabelKind
from pipeline.artifacts.files import parse_json
from pipeline.corpora.base import reject
from pipeline.errors import SonolexError
from pipeline.evaluation.ensemble import ScoredClips
from pipeline.inference.files import PATH_COLUMNS, choose_column, place_of, read_table
from pipeline.inference.prediction import Prediction
from pipeline.inference.records import LABEL_SEPARATOR

LABEL_COLUMNS = ("labels", "label", "class", "category")  # the first that a table has

_NAMED = 5  # unknown labels in a message


@dataclass(frozen=True)
class FileLabels:
    """Labels of files, by absolute path."""

    path: Path  # of the table
    labels: dict[Path, tuple[str, ...]]

    def require_any(self, files: Sequence[Path]) -> None:
        """Raise SonolexError unless one of these files has labels."""
        if files and not self.count_of(files):
            raise SonolexError(
                f"{self.path}: expected labels of the files to predict, such as {place_of(files[0])}, found those of "
                f"others, such as {next(iter(self.labels))}; --root says which folder the paths in it are below"
            )

    def scored(self, predictions: Sequence[Prediction]) -> ScoredClips | None:
        """Return the predictions of files that have labels, with their targets; None where there is none."""
        known = [prediction for prediction in predictions if place_of(prediction.source) in self.labels]
        if not known:
            return None
        classes = list(known[0].classes)
        targets = np.zeros((len(known), len(classes)), dtype=np.float32)
        for row, prediction in enumerate(known):
            for label in self.labels[place_of(prediction.source)]:
                targets[row, classes.index(label)] = 1
        return ScoredClips(
            fold="",
            classes=tuple(classes),
            label_kind=known[0].label_kind,
            clip_ids=tuple(prediction.source for prediction in known),
            scores=np.stack([prediction.scores for prediction in known]),
            targets=targets,
            thresholds=known[0].thresholds,
        )

    def count_of(self, files: Sequence[str | Path]) -> int:
        """Return how many of these files have labels."""
        return sum(place_of(file) in self.labels for file in files)


def read_labels(path: Path, root: Path | None, classes: Sequence[str], label_kind: LabelKind) -> FileLabels:
    """Read a table with a column of paths and one of labels: JSON lists, or labels separated by `|`.

    Paths are below `root`, by default the table's folder; a file in several rows has the labels of all. Raises SonolexError
    for labels that are no classes of the model, and unless each file has one label where the model knows one a file.
    """
    rows = read_table(path)
    files, column = choose_column(path, rows[0], PATH_COLUMNS), choose_column(path, rows[0], LABEL_COLUMNS)
    labels: dict[Path, tuple[str, ...]] = {}
    for row in rows:
        place = place_of((root or path.parent) / Path(row[files]).expanduser())
        labels[place] = tuple(dict.fromkeys((*labels.get(place, ()), *_split(row[column], label_kind))))
    _require_classes(path, labels, classes)
    if label_kind == "one":
        wrong = [f"{place} ({len(found)})" for place, found in labels.items() if len(found) != 1]
        reject(path, {"expected exactly one label a file, as the model has; correct the table": wrong})
    return FileLabels(path, labels)


def _split(text: str, label_kind: LabelKind) -> list[str]:
    if text.startswith("["):
        try:
            return [str(label) for label in parse_json(text)]
        except ValueError:
            pass  # a label that begins with a bracket
    parts = text.split(LABEL_SEPARATOR) if label_kind == "many" else [text]
    return [part.strip() for part in parts if part.strip()]


def _require_classes(path: Path, labels: dict[Path, tuple[str, ...]], classes: Sequence[str]) -> None:
    unknown = sorted({label for found in labels.values() for label in found} - set(classes))
    if not unknown:
        return
    named = []
    for label in unknown[:_NAMED]:
        close = difflib.get_close_matches(label, classes, n=1)
        named.append(f"{label!r}" + (f" (close to {close[0]!r})" if close else ""))
    more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
    raise SonolexError(
        f"{path}: expected labels that are classes of the model ({', '.join(classes[:10])}{', ...' * (len(classes) > 10)}), "
        f"found {', '.join(named)}{more}; rename the labels in the table, leave out rows of other classes, or take a model "
        "of these classes"
    )
