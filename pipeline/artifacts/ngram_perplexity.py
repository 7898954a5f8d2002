"""Perplexity of a fold's test clips under n-gram models of its training clips, as CSV: one row per class and order.

Conventions: a model of order n predicts each token from the n - 1 before it, codebook by codebook. Perplexity is 2 to the
power of the bits per token. Bits per second are over all codebooks, so that vocabularies whose tokens differ in duration can
be compared. A clip counts in each of its classes.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.artifacts.files import replacing
from pipeline.errors import ArtifactError

ALL_CLASSES = "(all)"  # instead of a class: every test clip once

_COLUMNS = ("class", "order", "num_clips", "num_tokens", "seconds", "bits", "perplexity", "bits_per_second")


@dataclass(frozen=True)
class NgramPerplexity:
    """Perplexity of the test clips of one class under the model of one order."""

    class_name: str
    order: int
    num_clips: int
    num_tokens: int  # over all codebooks
    seconds: float  # duration of the clips
    bits: float  # of all their tokens under the model

    @property
    def perplexity(self) -> float:
        return 2.0 ** (self.bits / self.num_tokens) if self.num_tokens else math.nan

    @property
    def bits_per_second(self) -> float:
        return self.bits / self.seconds if self.seconds else math.nan


def write_ngram_perplexity(path: Path, rows: Sequence[NgramPerplexity]) -> None:
    """Write the table; seconds and bits in full precision, values derived from them with 6 decimals."""
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for row in rows:
            measures = repr(row.seconds), repr(row.bits), f"{row.perplexity:.6f}", f"{row.bits_per_second:.6f}"
            writer.writerow([row.class_name, row.order, row.num_clips, row.num_tokens, *measures])


def read_ngram_perplexity(path: Path) -> list[NgramPerplexity]:
    """Read the table. Raises ArtifactError when it is missing or is no such table."""

    def error(field: str, expected: str, found: object) -> ArtifactError:
        return ArtifactError(path, field, expected=expected, found=found, stage="ngram_perplexity")

    if not path.exists():
        raise error("file", "a row for each class and order", "no file")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        if (found := next(reader, [])) != list(_COLUMNS):
            raise error("columns", ", ".join(_COLUMNS), ", ".join(found))
        try:
            return [
                NgramPerplexity(name, int(order), int(clips), int(tokens), float(seconds), float(bits))
                for name, order, clips, tokens, seconds, bits, *_ in reader
            ]
        except ValueError as fault:
            raise error("rows", "numbers", fault) from None
