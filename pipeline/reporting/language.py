"""What follows what: how well n-gram models of a fold's training clips foretell the words of its test clips, by class.

Conventions: a model of order n predicts each word from the n - 1 before it, codebook by codebook (see
`pipeline/vocabulary/ngrams.py`). It hears all classes, and is never told which one a clip is of. Perplexity is 2 to the bits
a word: so many equally likely words would be as hard to foretell. Bits a second are over all codebooks, and allow for words
that last longer in one vocabulary than in another. A clip counts in each of its classes.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.artifacts.files import replacing
from pipeline.evaluation.ensemble import ScoredClips
from pipeline.vocabulary.ngrams import count_ngrams, sentence_sums, word_probabilities
from pipeline.vocabulary.sampling import choose_clips

ORDERS = (1, 2, 3)
ALL_CLASSES = "(all)"  # in the place of a class: every test clip once

_MOST_WORDS = 1 << 21  # of training clips, drawn by hash: 240 MiB while their trigrams are counted
_COLUMNS = ("vocabulary", "fold", "class", "order", "num_clips", "num_words", "perplexity", "bits_per_second")


@dataclass(frozen=True)
class LanguageRow:
    """One row of `language.csv`: the test clips of one class, under the model of one order."""

    fold: str
    class_name: str
    order: int
    num_clips: int
    num_words: int  # over all codebooks
    bits: float  # that it takes to say all of them
    seconds: float  # that they last

    @property
    def perplexity(self) -> float:
        return 2.0 ** (self.bits / self.num_words) if self.num_words else math.nan

    @property
    def bits_per_second(self) -> float:
        return self.bits / self.seconds if self.seconds else math.nan


def measure_language(
    tokens: Mapping[str, np.ndarray],
    *,
    size: int,
    training_clips: Sequence[str],
    test: ScoredClips,
    seconds: Mapping[str, float],
) -> list[LanguageRow]:
    """Fit on the training clips of a fold, and measure on its test clips; classes without any have no row.

    `tokens` holds clips' (codebook, word) by id, with `size` words in each codebook; `seconds` how long clips last.
    """
    lengths = {clip: tokens[clip].size for clip in training_clips if clip in tokens}
    training = [tokens[clip] for clip in choose_clips(lengths, most=_MOST_WORDS, seed=0)]
    clips = [tokens[clip] for clip in test.clip_ids]
    num_words = np.array([clip.size for clip in clips])
    lasting = np.array([seconds[clip] for clip in test.clip_ids])
    members = {ALL_CLASSES: np.arange(len(clips))}
    members |= {name: np.flatnonzero(test.targets[:, number] > 0.5) for number, name in enumerate(test.classes)}
    rows = []
    for order in ORDERS:
        bits = _clip_bits(training, clips, size=size, order=order)
        for name, own in members.items():
            if own.size:
                totals = int(num_words[own].sum()), float(bits[own].sum()), float(lasting[own].sum())
                rows.append(LanguageRow(test.fold, name, order, len(own), *totals))
    return rows


def _clip_bits(training: Sequence[np.ndarray], clips: Sequence[np.ndarray], *, size: int, order: int) -> np.ndarray:
    """Return the bits that each clip (codebook, word) takes: (clip,) float64. Each codebook is a language of its own."""
    num_codebooks = len(training[0])
    heard, new = ([words for clip in part for words in clip] for part in (training, clips))
    books = np.arange(num_codebooks)
    levels = count_ngrams(heard, np.tile(books, len(training)), num_languages=num_codebooks, size=size, order=order)
    bits = -np.log2(word_probabilities(levels, new, np.tile(books, len(clips))))
    return np.asarray(sentence_sums(bits, new).reshape(-1, num_codebooks).sum(axis=1))


def over_folds(rows: Sequence[LanguageRow]) -> dict[str, list[LanguageRow]]:
    """Return class -> one row an order, the clips of all folds together; the most foreseeable class first."""
    totals = {}
    for name in dict.fromkeys(row.class_name for row in rows):
        totals[name] = [_join([row for row in rows if (row.class_name, row.order) == (name, n)]) for n in ORDERS]
    return dict(sorted(totals.items(), key=lambda item: item[1][-1].perplexity))


def _join(rows: Sequence[LanguageRow]) -> LanguageRow:
    clips, words = sum(row.num_clips for row in rows), sum(row.num_words for row in rows)
    bits, seconds = sum(row.bits for row in rows), sum(row.seconds for row in rows)
    return LanguageRow("", rows[0].class_name, rows[0].order, clips, words, bits, seconds)


def write_language(path: Path, rows: Mapping[str, Sequence[LanguageRow]]) -> None:
    """Write the rows of each vocabulary, by its name, as CSV, numbers with 6 decimals."""
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_COLUMNS)
        for name, own in rows.items():
            for row in own:
                measures = f"{row.perplexity:.6f}", f"{row.bits_per_second:.6f}"
                writer.writerow([name, row.fold, row.class_name, row.order, row.num_clips, row.num_words, *measures])
