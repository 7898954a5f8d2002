"""Byte-pair merges of a fitted vocabulary, learnt on token sequences of training clips.

Conventions: frames (frame, mel) float32 in the front end's units; a token sequence is a clip's base tokens as in
`pipeline/vocabulary/bpe.py`.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from pipeline.artifacts.vocabulary import MergeMetadata
from pipeline.vocabulary.assignment import base_tokens
from pipeline.vocabulary.batching import clip_batches
from pipeline.vocabulary.bpe import Merger, interleave, learn_merges
from pipeline.vocabulary.fitting import Fit, Merges
from pipeline.vocabulary.sampling import FRAMES_PER_BATCH, ClipFrames, choose_clips
from pipeline.vocabulary.settings import CommonParams

# Whole clips, since pairs are what counts. They are held as strings while merges are counted, at some 100 bytes a token;
# 5,000 clips of ten seconds at 100 frames a second with one codebook.
_MOST_BASE_TOKENS = 5_000_000


def fit_merges(params: CommonParams, fit: Fit, reader: ClipFrames, clip_ids: Sequence[str]) -> Merges:
    """Learn merges on clips among `clip_ids`, drawn by hash, that hold at most `sample_frames` frames.

    Raises CorpusError when their token sequences do not give so many tokens.
    """
    if params.bpe is None:
        return Merges(np.empty((0, 2), dtype=np.int32), {})
    space, codebooks = fit.space, fit.codebooks
    num_codebooks, size = codebooks.codes.shape[:2]
    lengths = {clip_id: reader.num_frames(clip_id) for clip_id in reader.ok(clip_ids)}
    most = min(params.sample_frames, _MOST_BASE_TOKENS * space.stack // num_codebooks)
    chosen = choose_clips(lengths, most=most, seed=params.seed)
    sequences: list[np.ndarray] = []
    for batch in clip_batches(chosen, lengths.__getitem__, frames_per_batch=FRAMES_PER_BATCH):
        tokens = base_tokens(space, fit.kind, codebooks, reader.read(batch), what="training clips")
        sequences += [interleave(clip, size) for clip in tokens]
    pairs = learn_merges(sequences, num_base=num_codebooks * size, size=params.bpe.num_tokens)
    return Merges(pairs, _describe(params.bpe.num_tokens, chosen, sequences, Merger(pairs, num_codebooks * size)))


def _describe(
    num_tokens: int, clip_ids: Sequence[str], sequences: Sequence[np.ndarray], merger: Merger
) -> MergeMetadata:
    """Return which clips the merges were learnt on, and what became of their token sequences."""
    counts: Counter[int] = Counter()
    for sequence in sequences:
        counts.update(merger.lengths[merger.merge(sequence)].tolist())
    base, merged = sum(map(len, sequences)), counts.total()
    return {
        "num_tokens": num_tokens,
        "clips": len(clip_ids),
        "base_tokens": base,
        "tokens": merged,
        "compression": round(base / merged, 6),
        "lengths": [[length, count] for length, count in sorted(counts.items())],
        "digest": hashlib.sha256("\x1f".join(clip_ids).encode()).hexdigest()[:32],
    }
