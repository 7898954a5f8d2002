"""Perplexity of a fold's test clips under n-gram models of its training clips, as CSV: one row a class and order.

Conventions: a model of order n predicts each token from the n - 1 before it, codebook by codebook. Perplexity is 2 to the
bits a token: so many equally likely tokens would be as hard to predict. Bits a second are over all codebooks, and allow for
tokens that last longer in one vocabulary than in another. A clip counts in each of its classes.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.artifacts.files import replacing
from pipeline.errors import ArtifactError

ALL_CLASSES = "(all)"  # in the place of a class: every test clip once

_COLUMNS = ("class", "order", "num_clips", "num_tokens", "seconds", "bits", "perplexity", "bits_per_second")


@dataclass(frozen=True)
class NgramPerplexity:
    """The test clips of one class, under the model of one order."""

    class_name: str
    order: int
    num_clips: int
    num_tokens: int  # over all codebooks
    seconds: float  # that the clips last
    bits: float  # that it takes to code all of their tokens

    @property
    def perplexity(self) -> float:
        return 2.0 ** (self.bits / self.num_tokens) if self.num_tokens else math.nan

    @property
    def bits_per_second(self) -> float:
        return self.bits / self.seconds if self.seconds else math.nan


def write_ngram_perplexity(path: Path, rows: Sequence[NgramPerplexity]) -> None:
    """Write the table; seconds and bits as they are, what follows from them with 6 decimals for people."""
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for row in rows:
            measures = repr(row.seconds), repr(row.bits), f"{row.perplexity:.6f}", f"{row.bits_per_second:.6f}"
            writer.writerow([row.class_name, row.order, row.num_clips, row.num_tokens, *measures])


def read_ngram_perplexity(path: Path) -> list[NgramPerplexity]:
    """Read the table again. Raises ArtifactError when it is missing or is none."""

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
