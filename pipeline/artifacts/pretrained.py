"""Weights from masked-token pretraining: `weights.safetensors`, and `pretrained.json` beside it.

The weights are those of `pipeline/training/token_predictor.py`: the model's own without its head, below `reader.`, and those
of the token classifier.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artifacts.model import InputMetadata
from pipeline.artifacts.settings import Metadata
from pipeline.artifacts.weights import WeightsCard, WeightsSchema


class PretrainingMetadata(Metadata):
    """Metadata of pretrained weights, without what names them."""

    model: str
    params: dict[str, Any]  # the model's own section, as validated
    pretrain: dict[str, Any]  # the section of that name
    input: InputMetadata  # vocabulary_size, num_codebooks, bands
    source: str  # digest of the vocabulary
    fold: str
    seed: int
    clips_seen: int
    measures: dict[str, float]  # of the last epoch: see pipeline/training/masked_tokens.py


class PretrainingCard(PretrainingMetadata, WeightsCard):
    """Content of `pretrained.json`, without its own digest."""


PRETRAINED = WeightsSchema(
    card="pretrained.json",
    stage="pretrain",
    metadata=PretrainingCard,
)


@dataclass(frozen=True)
class Pretrained:
    """An opened folder of pretrained weights: arrays by name, and the metadata."""

    path: Path
    weights: dict[str, np.ndarray]
    metadata: PretrainingCard

    def require_shapes(self, prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise ArtifactError unless the weights below a prefix have exactly these names and shapes."""
        found = {name: values.shape for name, values in self.weights.items() if name.startswith(prefix)}
        wrong = [name for name in {**shapes, **found} if shapes.get(name) != found.get(name)]
        if wrong:
            name, others = wrong[0], f" ({len(wrong) - 1} more differ)" if len(wrong) > 1 else ""
            expected, shape = shapes.get(name, "no such weights"), found.get(name, "none")
            expected = f"{expected}, as the model has"
            raise PRETRAINED.error(self.path, f"weights {name}", expected=expected, found=f"{shape}{others}")


def open_pretrained(path: Path, *, fold: str, source: str) -> Pretrained:
    """Open a folder of pretrained weights, and check its metadata and the digest of its weights.

    Raises ArtifactError unless it was pretrained for this fold, on token sequences of the vocabulary with the digest
    `source`.
    """
    opened = Pretrained(path, *PRETRAINED.open(path))
    card = opened.metadata
    for field, expected, found in (
        ("metadata fold (fold)", fold, card["fold"]),
        ("metadata source (vocabulary)", source, card["source"]),
    ):
        if found != expected:
            raise PRETRAINED.error(path, field, expected=expected, found=found)
    return opened
