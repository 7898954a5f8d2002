"""Description of every token for the atlas: its pattern, its occurrences, and its nearest tokens.

Conventions: tokens are (codebook, token); counts are (codebook, token, class) occurrences, of a clip of several
classes in equal parts; patterns (token, frame, mel) are in the front end's units.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.artifacts.vocabulary import Vocabulary
from pipeline.reporting.figures import centres
from pipeline.spectrogram.log_mel import count_bands, log_mel_part
from pipeline.vocabulary.rebuilding import rebuild, token_spectra

_TOKENS_PER_BLOCK = 1024  # whose distances to all others are


@dataclass(frozen=True)
class CodebookPatterns:
    """Patterns that the tokens of one codebook decode to."""

    patterns: np.ndarray  # (token, frame, mel) float32: of the bands [first, last) alone
    first: int
    last: int
    change: bool  # patterns are what a token adds to those of the codebooks before it, not a spectrum of its own

    @property
    def brightness(self) -> np.ndarray:
        """The centre of each token's pattern over the bands, (token,): high-pitched tokens last."""
        strength = np.abs(self.patterns) if self.change else self.patterns
        return self.first + centres(strength.mean(axis=1))


def token_patterns(vocabulary: Vocabulary, counts: np.ndarray) -> list[CodebookPatterns]:
    """Rebuild every token with the other codebooks at their most frequent tokens; `counts` are (codebook, token).

    Where an earlier codebook has coded the same bands already, as in residual vocabularies, a pattern is the
    change against the mean over the codebook's tokens. A merged token's pattern is its mean over time, that of a token which
    stands for no frames the mean frame of its occurrences. Of frames with more than log-mel values a pattern is the
    log-mel part.
    """
    metadata = vocabulary.metadata["front_end"]
    if vocabulary.merged:  # such tokens differ in length, and may speak of a part of the bands alone
        spectra = log_mel_part(token_spectra(vocabulary, 0)[:, None, :], metadata)
        return [CodebookPatterns(spectra, 0, spectra.shape[2], False)]
    if not vocabulary.decodable:
        books = (token_spectra(vocabulary, number)[:, None, :] for number in range(vocabulary.num_codebooks))
        return [CodebookPatterns(log_mel_part(book, metadata), 0, count_bands(metadata), False) for book in books]
    usual, size, groups = counts.argmax(axis=1), counts.shape[1], vocabulary.space.groups
    width = count_bands(metadata) // groups
    codebooks: list[CodebookPatterns] = []
    for number, (start, _) in enumerate(vocabulary.metadata["bands"]):
        tokens = np.tile(usual[:, None], (1, size)).astype(np.uint16)
        tokens[number] = np.arange(size)
        first = start * groups // vocabulary.space.num_features * width
        frames = log_mel_part(rebuild(vocabulary, tokens), metadata)
        patterns = frames.reshape(size, vocabulary.space.stack, -1)[:, :, first : first + width]
        change = any(first < other.last and other.first < first + width for other in codebooks)
        if change:
            patterns = patterns - np.average(patterns, axis=0, weights=np.maximum(counts[number], 1e-9))
        codebooks.append(CodebookPatterns(patterns, first, first + width, change))
    return codebooks


def token_places(vocabulary: Vocabulary, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first frame of every token of a sequence (codebook, position), and the one behind its last: (position,)."""
    stack = vocabulary.frames_per_token
    if vocabulary.merged:  # of base tokens, several codebooks' in turn: a token may begin or end within a frame
        lengths = np.array([len(parts) for parts in vocabulary.parts])[tokens[0]]
        stops, together = np.cumsum(lengths), len(vocabulary.codebooks)
        return (stops - lengths) // together * stack, -(-stops // together) * stack
    if vocabulary.external:
        edges = np.arange(tokens.shape[1] + 1) * vocabulary.metadata["front_end"]["frame_rate"] / vocabulary.frame_rate
        starts = np.floor(edges[:-1]).astype(np.int64)
        return starts, np.maximum(np.ceil(edges[1:]).astype(np.int64), starts + 1)
    starts = np.arange(tokens.shape[1]) * stack
    return starts, starts + stack


def class_rates(counts: np.ndarray) -> np.ndarray:
    """Return which part of a token's occurrences would lie in each class, were all classes equally long.

    Same shape as `counts` (codebook, token, class); the parts of a token add up to 1. About one occurrence is added in each
    class, so that a token that was met once does not count as that class's own.
    """
    lengths = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    rates = (counts + lengths / lengths.mean()) / lengths
    return np.asarray(rates / rates.sum(axis=2, keepdims=True))


def nearest_tokens(vectors: np.ndarray, count: int) -> np.ndarray:
    """Return the other tokens nearest to each of a codebook's `vectors` (token, feature): (token, at most `count`) int64."""
    size = len(vectors)
    count = min(count, size - 1)
    lengths = np.einsum("wf,wf->w", vectors, vectors)
    nearest = np.empty((size, count), dtype=np.int64)
    for first in range(0, size, _TOKENS_PER_BLOCK):
        rows = np.arange(first, min(first + _TOKENS_PER_BLOCK, size))
        distances = lengths - 2 * (vectors[rows] @ vectors.T)
        distances[np.arange(len(rows)), rows] = np.inf
        nearest[rows] = np.argsort(distances, axis=1, kind="stable")[:, :count]
    return nearest
