"""Use of a fold's tokens over all clips of the corpus, those that the vocabulary was not fitted on included.

Conventions: counts are (codebook, code) tokens; the measures are those of `pipeline/vocabulary/statistics.py`.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from pipeline.artifacts.files import replacing
from pipeline.artifacts.ngram_perplexity import NgramPerplexity
from pipeline.artifacts.tokens import TOKENS, TokenTable, token_arrays
from pipeline.artifacts.vocabulary import Vocabulary
from pipeline.vocabulary.statistics import agreement, bits_per_second, mutual_information, summarise

_CLIPS_PER_BLOCK = 4096  # whose tokens are in memory as int64 at once
_SPREAD_TOKENS = 20_000  # scikit-learn takes seconds for as many of 4,096 tokens


@dataclass(frozen=True)
class TokenStatistics:
    """One fold's line of the report."""

    num_frames: int  # or stacks of them, where a token stands for several
    num_tokens: int  # over all codebooks
    num_unused: int
    perplexity: float
    top_share: float  # part of them that the most frequent token takes, mean over codebooks
    zipf_slope: float  # NaN with too few tokens in use
    bits_per_second: float
    distortion: float  # of the sample's normalised frames, part of their variance that the tokens lose
    information: float  # bits that a token says about the class of its training clip, mean over codebooks
    stability: float  # agreement with the tokens of the next fold; NaN with one fold


@dataclass(frozen=True)
class TokenRate:
    """Rates of token sequences."""

    num_codebooks: int
    num_tokens: int  # of a codebook
    tokens_per_second: float  # over all codebooks
    bits_per_second: float  # of a code of fixed length: log2(num_tokens) a token
    entropy_per_second: float  # bits: the entropy of single tokens


@dataclass(frozen=True)
class TokenUse:
    """All that the report says of one vocabulary's tokens."""

    counts: Mapping[str, np.ndarray]  # fold -> how often each occurs, over all clips: (codebook, code)
    statistics: Mapping[str, TokenStatistics]  # fold -> its line
    merged_lengths: Mapping[str, np.ndarray]  # fold -> `length_shares` of test clips; empty without BPE
    rates: Mapping[str, TokenRate]  # fold -> of test clips
    perplexity: Mapping[str, Sequence[NgramPerplexity]]  # fold -> rows; see `pipeline/artifacts/ngram_perplexity.py`


def require_tokens_of(tokens: TokenTable, vocabulary: Vocabulary) -> None:
    """Raise ArtifactError unless opened tokens are tokens of this vocabulary."""
    if tokens.metadata["vocabulary"] != vocabulary.digest():
        expected = f"{vocabulary.digest()}, as {vocabulary.path}"
        raise TOKENS.error(tokens.path, "metadata vocabulary", expected=expected, found=tokens.metadata["vocabulary"])


def count_tokens(tokens: TokenTable) -> np.ndarray:
    """Count how often each token stands in all clips of opened tokens: (codebook, code) int64."""
    num_codebooks, size = tokens.metadata["num_codebooks"], tokens.metadata["vocabulary_size"]
    sequences = tokens["tokens"].combine_chunks().flatten()
    lengths = pc.list_value_length(sequences).to_numpy(zero_copy_only=False)
    codebooks = np.repeat(np.tile(np.arange(num_codebooks), len(tokens)), lengths)
    codes = sequences.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
    return np.bincount(codebooks * size + codes, minlength=num_codebooks * size).reshape(num_codebooks, size)


def measure_rate(vocabulary: Vocabulary, counts: np.ndarray, seconds: float) -> TokenRate:
    """Return the rates of the token sequences of clips of so many seconds, by their counts (codebook, code).

    Tokens are counted, since a clip may have more than its length says: a stack of frames, or a hidden state, that goes
    beyond its end is a token, and merged tokens have no fixed rate. External ones have that of their settings: they are of
    the whole clip, of which frames leave out the ends.
    """
    rate = float(counts[0].sum()) / seconds if seconds > 0 else math.nan
    if vocabulary.external:
        rate = vocabulary.frame_rate
    tokens = rate * vocabulary.num_codebooks
    bits = tokens * math.log2(vocabulary.num_tokens)
    return TokenRate(
        vocabulary.num_codebooks, vocabulary.num_tokens, tokens, bits, bits_per_second(counts, frame_rate=rate)
    )


def length_shares(vocabulary: Vocabulary, clips: Sequence[np.ndarray]) -> np.ndarray:
    """Return which part of the tokens of clips (1, token) stands for 0, 1, 2, ... base tokens: (length,)."""
    lengths = np.array([len(parts) for parts in vocabulary.parts])
    found = np.bincount(lengths[np.concatenate([tokens[0] for tokens in clips])])
    shares: np.ndarray = found / max(1, found.sum())
    return shares


def compression(shares: np.ndarray) -> float:
    """Return how many base tokens a token stands for on average, from `length_shares`: (length,)."""
    return float(shares @ np.arange(len(shares)))


def count_by_class(tokens: TokenTable, labels: Mapping[str, Sequence[int]], num_classes: int) -> np.ndarray:
    """Count the tokens of the clips in `labels` (clip_id -> classes) by class: (codebook, token, class) int64.

    A clip of several classes counts for each of them, one without a class for none.
    """
    num_codebooks, size = tokens.metadata["num_codebooks"], tokens.metadata["vocabulary_size"]
    counts = np.zeros(num_codebooks * size * num_classes, dtype=np.int64)
    shift = np.arange(num_codebooks)[:, None] * size
    cells: list[np.ndarray] = []
    for number, (clip, sequence) in enumerate(token_arrays(tokens).items(), start=1):
        codes = (sequence.astype(np.int64) + shift).ravel() * num_classes
        cells += [codes + label for label in labels.get(clip, ())]
        if cells and (number % _CLIPS_PER_BLOCK == 0):
            counts += np.bincount(np.concatenate(cells), minlength=len(counts))
            cells = []
    if cells:
        counts += np.bincount(np.concatenate(cells), minlength=len(counts))
    return counts.reshape(num_codebooks, size, num_classes)


def spread_tokens(arrays: Mapping[str, np.ndarray], vocabulary: Vocabulary) -> np.ndarray:
    """Return the tokens of some frames, evenly spread over all clips in the order of their ids: (codebook, frame) uint16.

    `arrays` holds clips' tokens by id. Which frames depends on the clips and their lengths alone, so those of two
    vocabularies may be compared; a merged token stands for all of its frames.
    """
    arrays = {clip: vocabulary.in_time(tokens) for clip, tokens in arrays.items()}
    step = max(1, -(-sum(tokens.shape[1] for tokens in arrays.values()) // _SPREAD_TOKENS))
    chosen, passed = [np.empty((vocabulary.num_codebooks, 0), np.uint16)], 0
    for clip in sorted(arrays):
        chosen.append(arrays[clip][:, -passed % step :: step])
        passed += arrays[clip].shape[1]
    return np.concatenate(chosen, axis=1)


def stabilities(spread: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return fold -> agreement of its tokens with those of the next fold, the last's with the first's; see `spread_tokens`.

    NaN with one fold, and where two folds' tokens do not stand for the same frames.
    """
    folds = list(spread)
    pairs = {fold: (spread[fold], spread[after]) for fold, after in zip(folds, [*folds[1:], *folds[:1]], strict=True)}
    return {
        fold: agreement(one, other) if len(folds) > 1 and one.shape == other.shape else math.nan
        for fold, (one, other) in pairs.items()
    }


def token_statistics(
    counts: np.ndarray, *, frame_rate: float, joint: np.ndarray, distortion: float, stability: float
) -> TokenStatistics:
    """Describe counts (codebook, code) of token sequences with `frame_rate` (Hz) tokens a second and codebook.

    `joint` (codebook, token, class) are the counts in training clips.
    """
    summary = {
        name: math.nan if value is None else float(value)
        for name, value in summarise(counts, frame_rate=frame_rate).items()
    }
    return TokenStatistics(
        num_frames=int(counts[0].sum()),
        num_tokens=counts.size,
        num_unused=int(summary["dead_codes"]),
        perplexity=summary["perplexity"],
        top_share=float((counts.max(axis=1) / np.maximum(counts.sum(axis=1), 1)).mean()),
        zipf_slope=summary["zipf_slope"],
        bits_per_second=summary["bits_per_second"],
        distortion=distortion,
        information=float(np.mean([mutual_information(codebook) for codebook in joint])),
        stability=stability,
    )


def write_token_statistics(path: Path, tokens: Mapping[str, TokenUse]) -> None:
    """Write one row a vocabulary, by its name, and fold as CSV, floats with 6 decimals, undefined values as `nan`."""
    names = ["vocabulary", "fold", *(field.name for field in fields(TokenStatistics))]
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        for name, own in tokens.items():
            for fold, row in own.statistics.items():
                values = asdict(row).values()
                rounded = (f"{value:.6f}" if isinstance(value, float) else value for value in values)
                writer.writerow([name, fold, *rounded])
