"""Thresholds of decisions, of every model and ensemble on every fold: one row for each set of predictions that is averaged.

A row is of one run (`seed` is its number), or of all seeds averaged (`seed` is ALL_SEEDS), as ensembles are. It follows from
predictions alone, so that other thresholds train and predict nothing again. With one label a clip they are not used.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from pipeline.artifacts.clips import LabelKind
from pipeline.artifacts.layout import ALL_SEEDS
from pipeline.artifacts.settings import Metadata
from pipeline.artifacts.tables import Table, TableSchema

Source = Literal["params", "validation", "inner folds"]  # given; or the clips that they are fitted on


class ThresholdsMetadata(Metadata):
    """Metadata of thresholds."""

    classes: list[str]
    label_kind: LabelKind


ThresholdTable = Table[ThresholdsMetadata]

THRESHOLDS = TableSchema(
    name="thresholds",
    version=1,
    stage="thresholds",
    columns={
        "model": pa.string(),  # or ensemble
        "fold": pa.string(),
        "seed": pa.string(),
        "weights": pa.list_(pa.string()),  # digests of those that predict, by model and seed
        "source": pa.string(),
        "num_clips": pa.int64(),  # that they are fitted on
        "thresholds": pa.list_(pa.float64()),  # one per class, of probabilities
    },
    metadata=ThresholdsMetadata,
)


class Thresholds:
    """Thresholds by model or ensemble, fold and seed."""

    def __init__(self, table: ThresholdTable) -> None:
        """Take an opened table. Raises ArtifactError unless each row has one threshold per class, from 0 to 1."""
        self.path, self.classes = table.path, table.metadata["classes"]
        self.sources: list[Source] = list(dict.fromkeys(table.list("source")))
        self._rows = {(row["model"], row["fold"], row["seed"]): row for row in table.columns.to_pylist()}
        for key, row in self._rows.items():
            values = np.array(row["thresholds"])
            if len(values) != len(self.classes) or not ((values >= 0) & (values <= 1)).all():
                expected, found = f"{len(self.classes)} numbers from 0 to 1", f"{len(values)}: {row['thresholds'][:3]}"
                raise THRESHOLDS.error(self.path, f"thresholds of {'/'.join(key)}", expected=expected, found=found)

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest threshold of all rows."""
        values = np.array([row["thresholds"] for row in self._rows.values()])
        return float(values.min()), float(values.max())

    def of(self, model: str, fold: str, seed: str, weights: list[str]) -> np.ndarray:
        """Return thresholds (class,) float64 of predictions by these weights.

        Raises ArtifactError where there are none, and where they follow from other weights.
        """
        name = f"{model}/{fold}/{seed}"
        row = self._rows.get((model, fold, seed))
        if row is None:
            raise THRESHOLDS.error(self.path, "model", expected=f"a row of {name}", found="none")
        if row["weights"] != weights:
            raise THRESHOLDS.error(self.path, f"weights of {name}", expected=weights, found=row["weights"])
        return np.array(row["thresholds"])

    def by_fold(self, model: str) -> dict[str, np.ndarray]:
        """Return the thresholds (class,) of all seeds of a model or ensemble, by fold. Raises ArtifactError for another."""
        keys = [key for key in self._rows if key[0] == model and key[2] == ALL_SEEDS]
        found = {key[1]: np.array(self._rows[key]["thresholds"]) for key in keys}
        if not found:
            raise THRESHOLDS.error(self.path, "model", expected=f"a row of {model}", found="none")
        return found

    def require_classes(self, classes: list[str], where: Path) -> None:
        """Raise ArtifactError unless these are the classes of the thresholds, in order."""
        if self.classes != classes:
            expected, found = f"the {len(classes)} classes of {where}", f"{len(self.classes)} others"
            raise THRESHOLDS.error(self.path, "metadata classes", expected=expected, found=found)


def open_thresholds(path: Path) -> Thresholds:
    """Open thresholds and check them."""
    return Thresholds(THRESHOLDS.open(path))
