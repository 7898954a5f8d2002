"""Table of the labels that replace the published ones in training, as `labels.use` gives them.

Conventions: positions of classes are ascending. Clips that are not in the table keep their published labels, and every clip
keeps them where it is a validation or test clip; without `labels.use` the table is empty.
"""

from pathlib import Path

import pyarrow as pa

from pipeline.artifacts.settings import Metadata
from pipeline.artifacts.tables import Table, TableSchema


class TrainingLabelsMetadata(Metadata):
    """Metadata of the table."""

    classes: list[str]
    table: str  # name of the file that labels.use names; empty = none
    fold: str  # the only fold that may be trained on these labels; empty = any


TrainingLabelTable = Table[TrainingLabelsMetadata]

TRAINING_LABELS = TableSchema(
    name="training labels",
    version=1,
    stage="corpus",
    columns={
        "clip_id": pa.string(),
        "labels": pa.list_(pa.uint16()),  # positions in the class list
        "unknown": pa.list_(pa.uint16()),  # classes of which nothing is known
        "soft": pa.list_(pa.float32()),  # a probability per class, NaN where unknown; empty = the clip has `labels`
    },
    metadata=TrainingLabelsMetadata,
)


def open_training_labels(path: Path) -> TrainingLabelTable:
    """Open the table."""
    return TRAINING_LABELS.open(path)
