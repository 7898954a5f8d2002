"""Attributions of a network's logits to the tokens that it reads, averaged over the occurrences of each token.

Conventions: attributions are integrated gradients, in units of the logits. Logits behind a softmax are taken relative to
their mean over classes, since it depends on differences alone. Codebooks and tokens are numbered as in token sequences.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.artifacts.settings import Metadata
from pipeline.artifacts.tables import Table, TableSchema


class AttributionMetadata(Metadata):
    """Metadata of a network's attributions on one vocabulary and fold."""

    model: str  # name, with the vocabulary's
    fold: str
    seed: int
    classes: list[str]
    vocabulary: str  # digest of the vocabulary behind the tokens
    weights: str  # digest of the file of weights
    relative: bool  # logits are relative to their mean over classes
    steps: int  # points of the integral
    num_clips: int
    gap: float  # sum of a clip's attributions minus the difference of logits that it should be: root mean square
    difference: float  # root mean square of that difference, which the gap is compared with


AttributionTable = Table[AttributionMetadata]

ATTRIBUTION = TableSchema(
    name="attribution",
    version=1,
    stage="attribution*",
    columns={
        "codebook": pa.int32(),
        "token": pa.int32(),
        "occurrences": pa.int64(),  # in the clips that are attributed
        "attribution": pa.list_(pa.float32()),  # (class,) mean over occurrences
        "own": pa.float32(),  # mean over occurrences, to the classes of each one's clip
    },
    metadata=AttributionMetadata,
)


def open_attribution(path: Path, *, vocabulary: str, classes: list[str]) -> AttributionTable:
    """Open a table. Raises ArtifactError where it is of another vocabulary (by its digest) or of other classes."""
    table = ATTRIBUTION.open(path)
    for key, expected in (("vocabulary", vocabulary), ("classes", classes)):
        if (found := dict(table.metadata)[key]) != expected:
            raise ATTRIBUTION.error(path, f"metadata {key}", expected=expected, found=found)
    return table


def mean_attributions(table: AttributionTable, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return occurrences (codebook, token) int64, mean attributions (codebook, token, class), and those to own classes.

    `shape` is (codebook, token). The last are (codebook, token); of tokens that do not occur all are 0.
    """
    occurrences = np.zeros(shape, np.int64)
    own = np.zeros(shape, np.float32)
    means = np.zeros((*shape, len(table.metadata["classes"])), np.float32)
    rows = table["codebook"].to_numpy(), table["token"].to_numpy()
    occurrences[rows] = table["occurrences"].to_numpy()
    own[rows] = table["own"].to_numpy()
    means[rows] = np.array(table.list("attribution"), np.float32).reshape(-1, means.shape[2])
    return occurrences, means, own
