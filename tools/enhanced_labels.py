"""Write a fold's enhanced labels as the JSON of AST's and PSLA's programs, and count the label errors that are left.

    python -m tools.enhanced_labels [FOLD] --out enhanced.json

A clip that has a class and not its parent (male speech, and not speech) is an error of type 2; how few clips of a class have
any of its children hints at errors of type 1.
"""

from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table as Grid

from pipeline.artifacts.clips import open_clips
from pipeline.artifacts.labels import open_labels
from pipeline.artifacts.layout import Layout
from pipeline.check_params import load_experiment
from pipeline.corpora.label_json import write_label_json
from pipeline.corpora.ontology import Ontology, read_ontology
from pipeline.evaluation.enhancement import missing_parents
from pipeline.execution.stage import stage_main

_ROWS = 20  # of the table


class LabelErrors(NamedTuple):
    """Clips of a class with children, and of its children, before and after."""

    name: str
    clips: tuple[int, int]
    of_children: tuple[int, int]  # labels, summed over the direct children
    without_parent: tuple[int, int]  # of these, the labels of clips that lack the class


def label_errors(
    classes: list[str], before: NDArray[np.bool_], after: NDArray[np.bool_], ontology: Ontology
) -> list[LabelErrors]:
    """Return a row for each class that has children with labels (clip, class), the most errors before first."""
    missing = [missing_parents(labels, ontology).sum(axis=1) for labels in (before, after)]
    counts = [labels.sum(axis=0) for labels in (before, after)]
    children = [ontology.children @ count for count in counts]
    rows = [
        LabelErrors(name, *((int(old[number]), int(new[number])) for old, new in (counts, children, missing)))
        for number, name in enumerate(classes)
        if children[0][number]
    ]
    return sorted(rows, key=lambda row: (-row.without_parent[0], row.name))


def show(rows: list[LabelErrors], console: Console) -> None:
    grid = Grid(title="labels before > after")
    for heading in ("class", "its clips", "labels of its children", "of these without the class"):
        grid.add_column(heading, justify="left" if heading == "class" else "right")
    for row in rows[:_ROWS]:
        grid.add_row(row.name, *(f"{old:,} > {new:,}" for old, new in row[1:]))
    console.print(grid)


def main(
    fold: Annotated[str, typer.Argument(help="fold of labels.enhance")] = "official",
    out: Annotated[Path | None, typer.Option(help="JSON file to write")] = None,
) -> None:
    layout, sections = Layout(), load_experiment().sections
    clips, table = open_clips(layout.clips), open_labels(layout.labels(fold))
    classes = clips.metadata["classes"]
    ontology = read_ontology(sections["labels"].ontology, classes, clips.metadata.get("class_ids"))
    before, after = (_as_matrix(table.list(name), len(classes)) for name in ("published", "labels"))
    console = Console()
    show(label_errors(classes, before, after, ontology), console)
    if out is not None:
        write_label_json(out, clips, sections["corpus"].root, table.list("clip_id"), table.list("labels"))
        console.print(f"{out}: {len(table)} clips")


def _as_matrix(labels: list[list[int]], num_classes: int) -> NDArray[np.bool_]:
    matrix = np.zeros((len(labels), num_classes), dtype=np.bool_)
    for row, own in enumerate(labels):
        matrix[row, own] = True
    return matrix


if __name__ == "__main__":
    stage_main(main)
