"""Learn the merges of a fitted vocabulary, on sentences of training clips.

Conventions: frames (frame, mel) float32 in the front end's units; a sentence is a clip's base words as in
`pipeline/vocabulary/bpe.py`.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.vocabulary.assignment import base_words
from pipeline.vocabulary.batching import clip_batches
from pipeline.vocabulary.bpe import Merger, interleave, learn_merges
from pipeline.vocabulary.fitting import Fit, Merges
from pipeline.vocabulary.sampling import FRAMES_PER_BATCH, ClipFrames, choose_clips
from pipeline.vocabulary.settings import CommonParams

# Whole clips, since pairs are what counts. They are held as strings while merges are counted, at some 100 bytes a word;
# 5,000 clips of ten seconds at 100 frames a second with one codebook.
_MOST_BASE_WORDS = 5_000_000


def fit_merges(params: CommonParams, fit: Fit, reader: ClipFrames, clip_ids: Sequence[str]) -> Merges:
    """Learn merges on clips among `clip_ids`, drawn by hash, that hold at most `sample_frames` frames.

    Raises CorpusError when their sentences do not give so many words.
    """
    if params.bpe is None:
        return Merges(np.empty((0, 2), dtype=np.int32), {})
    space, codebooks = fit.space, fit.codebooks
    num_codebooks, size = codebooks.codes.shape[:2]
    lengths = {clip_id: reader.num_frames(clip_id) for clip_id in reader.ok(clip_ids)}
    most = min(params.sample_frames, _MOST_BASE_WORDS * space.stack // num_codebooks)
    chosen = choose_clips(lengths, most=most, seed=params.seed)
    sentences: list[np.ndarray] = []
    for batch in clip_batches(chosen, lengths.__getitem__, frames_per_batch=FRAMES_PER_BATCH):
        words = base_words(
            space, codebooks.codes, codebooks.bands, codebooks.ranks, reader.read(batch), what="training clips"
        )
        sentences += [interleave(clip, size) for clip in words]
    pairs = learn_merges(sentences, num_base=num_codebooks * size, size=params.bpe.num_tokens)
    return Merges(
        pairs,
        {"num_tokens": params.bpe.num_tokens, **_describe(chosen, sentences, Merger(pairs, num_codebooks * size))},
    )


def _describe(clip_ids: Sequence[str], sentences: Sequence[np.ndarray], merger: Merger) -> dict[str, Any]:
    """Return which clips the merges were learnt on, and what became of their sentences.

    `lengths` counts how many words of the merged sentences stand for 1, 2, ... base words: [[length, words], ...].
    """
    counts: Counter[int] = Counter()
    for sentence in sentences:
        counts.update(merger.lengths[merger.merge(sentence)].tolist())
    base, merged = sum(map(len, sentences)), counts.total()
    return {
        "clips": len(clip_ids),
        "base_words": base,
        "words": merged,
        "compression": round(base / merged, 6),
        "lengths": [[length, count] for length, count in sorted(counts.items())],
        "digest": hashlib.sha256("\x1f".join(clip_ids).encode()).hexdigest()[:32],
    }
