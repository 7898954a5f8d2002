"""N-gram perplexity: how well n-gram models of a fold's training clips predict the tokens of its test clips, by class.

Interpolated Kneser-Ney (`pipeline/vocabulary/ngrams.py`), each codebook by itself. One model is fitted on the training clips
of all classes, and is not told which class a clip has. Conventions: `pipeline/artifacts/ngram_perplexity.py`.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from pipeline.artifacts.ngram_perplexity import ALL_CLASSES, NgramPerplexity
from pipeline.vocabulary.ngrams import count_ngrams, sequence_sums, token_probabilities
from pipeline.vocabulary.sampling import choose_clips

ORDERS = (1, 2, 3)

_MOST_TOKENS = 1 << 21  # of training clips, drawn by hash: 240 MiB while their trigrams are counted


def measure_ngram_perplexity(
    tokens: Mapping[str, np.ndarray],
    *,
    vocabulary_size: int,
    training_clips: Sequence[str],
    test_clips: Sequence[str],
    labels: Mapping[str, Sequence[int]],
    classes: Sequence[str],
    seconds: Mapping[str, float],
) -> list[NgramPerplexity]:
    """Fit on training clips and measure on test clips; classes without any of these have no row.

    `tokens` holds clips' (codebook, token) by id, with `vocabulary_size` tokens in each codebook; `labels` the positions of
    a clip's classes in `classes`; `seconds` how long clips last.
    """
    lengths = {clip: tokens[clip].size for clip in training_clips if clip in tokens}
    training = [tokens[clip] for clip in choose_clips(lengths, most=_MOST_TOKENS, seed=0)]
    clips = [tokens[clip] for clip in test_clips]
    num_tokens = np.array([clip.size for clip in clips])
    lasting = np.array([seconds[clip] for clip in test_clips])
    members = {ALL_CLASSES: list(range(len(clips)))}
    for number, name in enumerate(classes):
        members[name] = [position for position, clip in enumerate(test_clips) if number in labels[clip]]
    rows = []
    for order in ORDERS:
        bits = _clip_bits(training, clips, size=vocabulary_size, order=order)
        for name, own in members.items():
            if own:
                totals = int(num_tokens[own].sum()), float(lasting[own].sum()), float(bits[own].sum())
                rows.append(NgramPerplexity(name, order, len(own), *totals))
    return rows


def _clip_bits(training: Sequence[np.ndarray], clips: Sequence[np.ndarray], *, size: int, order: int) -> np.ndarray:
    """Return the bits that each clip (codebook, token) takes: (clip,) float64. Each codebook has counts of its own."""
    num_codebooks = len(training[0])
    known, new = ([row for clip in part for row in clip] for part in (training, clips))
    books = np.arange(num_codebooks)
    levels = count_ngrams(known, np.tile(books, len(training)), num_groups=num_codebooks, size=size, order=order)
    bits = -np.log2(token_probabilities(levels, new, np.tile(books, len(clips))))
    return np.asarray(sequence_sums(bits, new).reshape(-1, num_codebooks).sum(axis=1))


def over_folds(folds: Iterable[Sequence[NgramPerplexity]]) -> dict[str, list[NgramPerplexity]]:
    """Return class -> one row an order, the clips of all folds together; the most predictable class first."""
    rows = [row for fold in folds for row in fold]
    totals = {}
    for name in dict.fromkeys(row.class_name for row in rows):
        totals[name] = [_join([row for row in rows if (row.class_name, row.order) == (name, n)]) for n in ORDERS]
    return dict(sorted(totals.items(), key=lambda item: item[1][-1].perplexity))


def _join(rows: Sequence[NgramPerplexity]) -> NgramPerplexity:
    clips, tokens = sum(row.num_clips for row in rows), sum(row.num_tokens for row in rows)
    seconds, bits = sum(row.seconds for row in rows), sum(row.bits for row in rows)
    return NgramPerplexity(rows[0].class_name, rows[0].order, clips, tokens, seconds, bits)
