"""How a fold's words are used over all clips of the corpus, those that the vocabulary was not fitted on included.

Conventions: counts are (codebook, code) words; the measures are those of `pipeline/vocabulary/statistics.py`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from pipeline.artifacts.tables import Table
from pipeline.artifacts.vocabulary import Vocabulary
from pipeline.vocabulary.statistics import summarise


@dataclass(frozen=True)
class WordStatistics:
    """One fold's line of the report."""

    num_frames: int  # or stacks of them, where a word stands for several
    num_words: int  # over all codebooks
    num_unused: int
    perplexity: float
    top_share: float  # part of them that the commonest word takes, mean over codebooks
    zipf_slope: float  # NaN with too few words in use
    bits_per_second: float


def count_words(tokens: Table) -> np.ndarray:
    """Count how often each word stands in all clips of opened tokens: (codebook, code) int64."""
    num_codebooks, size = tokens.facts["num_codebooks"], tokens.facts["vocabulary_size"]
    sentences = tokens["tokens"].combine_chunks().flatten()
    lengths = pc.list_value_length(sentences).to_numpy(zero_copy_only=False)
    codebooks = np.repeat(np.tile(np.arange(num_codebooks), len(tokens)), lengths)
    words = sentences.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
    return np.bincount(codebooks * size + words, minlength=num_codebooks * size).reshape(num_codebooks, size)


def length_shares(vocabulary: Vocabulary, clips: Sequence[np.ndarray]) -> np.ndarray:
    """Return which part of the words of clips (1, word) stands for 0, 1, 2, ... base words: (length,)."""
    lengths = np.array([len(parts) for parts in vocabulary.parts])
    found = np.bincount(lengths[np.concatenate([words[0] for words in clips])])
    shares: np.ndarray = found / max(1, found.sum())
    return shares


def compression(shares: np.ndarray) -> float:
    """Return how many base words a word stands for on average, from `length_shares`: (length,)."""
    return float(shares @ np.arange(len(shares)))


def word_statistics(counts: np.ndarray, *, frame_rate: float) -> WordStatistics:
    """Describe counts (codebook, code) of sentences with `frame_rate` (Hz) words a second and codebook."""
    summary = {
        name: math.nan if value is None else float(value)
        for name, value in summarise(counts, frame_rate=frame_rate).items()
    }
    return WordStatistics(
        num_frames=int(counts[0].sum()),
        num_words=counts.size,
        num_unused=int(summary["dead_codes"]),
        perplexity=summary["perplexity"],
        top_share=float((counts.max(axis=1) / np.maximum(counts.sum(axis=1), 1)).mean()),
        zipf_slope=summary["zipf_slope"],
        bits_per_second=summary["bits_per_second"],
    )
