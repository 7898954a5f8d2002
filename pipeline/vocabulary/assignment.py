"""Assignment of frames to tokens: the nearest code of every codebook.

Conventions: frames (frame, mel) float32 in the front end's units; features (token, feature), see
`pipeline/vocabulary/features.py`; tokens (codebook, token) uint16. What is computed depends on the vocabulary's arrays
alone, never on its kind: a codebook codes its part of the features, and where codebooks overlap, each codes what those
before it left over (residual vector quantisation; Juang and Gray, 1982), unless they are ranks of one codebook.

A clip's tokens follow from its own frames to the bit. How a product is rounded depends on how many rows it has and on which
thread computes them, so no product takes rows of two clips, and each is computed on one thread.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np

from pipeline.artifacts.vocabulary import FeatureSpace, Vocabulary
from pipeline.errors import CorpusError
from pipeline.execution.threads import map_threads, single_threaded, usable_threads
from pipeline.vocabulary.batching import clip_batches
from pipeline.vocabulary.bpe import interleave, merger_of
from pipeline.vocabulary.device import choose_device, nearest_on
from pipeline.vocabulary.features import clip_features

# Frames are scored in blocks whose scores (frame, code) stay in the processor's cache between the matrix product and
# the argmax; blocks of 32 M scores halve the rate. Figures beside FAISS and the bare product: benchmarks/README.md.
_SCORES_PER_BLOCK = 1 << 19
# As many frames are normalised and scored before the next ones are looked at: what is allocated for them is memory that
# was used before, and mostly still in the cache. Memory that the system hands out anew costs as much as 256 tokens do.
_FRAMES_PER_BLOCK = 1 << 14


def assign(vocabulary: Vocabulary, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the tokens of each clip (frame, mel) as tokens (codebook, token) uint16; stacks and slopes end with their clip.

    Merged tokens make one sequence, as though there were one codebook. Raises CorpusError when a frame is not finite: its
    nearest token would be any.
    """
    codebooks = vocabulary.codebooks
    what = f"frames for {vocabulary.path}"
    tokens = base_tokens(vocabulary.space, codebooks, vocabulary.metadata["bands"], vocabulary.ranks, clips, what=what)
    if not vocabulary.merged:
        return tokens
    num_codebooks, size = codebooks.shape[:2]
    merger = merger_of(vocabulary.merges, num_codebooks * size)
    return [merger.merge(interleave(clip, size))[None] for clip in tokens]


@single_threaded()
def base_tokens(
    space: FeatureSpace,
    codebooks: np.ndarray,
    bands: Sequence[Sequence[int]],
    ranks: Sequence[float],
    clips: Sequence[np.ndarray],
    *,
    what: str,
) -> list[np.ndarray]:
    """Return the tokens of each clip (frame, mel) before any merging: tokens (codebook, token) uint16.

    Raises CorpusError, which says `what` they are, when a frame is not finite.
    """
    lengths = [len(clip) for clip in clips]
    on_processor = choose_device(sum(lengths) * codebooks.shape[1]) is None
    limit = _FRAMES_PER_BLOCK if on_processor else sum(lengths)
    tokens: list[np.ndarray] = []
    for block in clip_batches(range(len(clips)), lengths.__getitem__, frames_per_batch=limit):
        features = clip_features(space, [clips[number] for number in block])
        _require_finite(features, clips, what)
        ends = list(accumulate(space.num_tokens(lengths[number]) for number in block))
        tokens += np.split(nearest_codes(features, codebooks, bands, ranks, ends), ends[:-1], axis=1)
    return tokens


def _require_finite(features: np.ndarray, clips: Sequence[np.ndarray], what: str) -> None:
    if not np.isfinite(features.sum()):
        bad = sum(int((~np.isfinite(clip).all(axis=1)).sum()) for clip in clips)
        raise CorpusError(
            f"{what}: expected finite numbers, found {bad} frames of {sum(map(len, clips))} with NaN or "
            "infinity; the front end floors the logarithm, so the stored frames are damaged: rerun the stage spectrogram"
        )


def nearest_codes(
    features: np.ndarray,
    codebooks: np.ndarray,
    bands: Sequence[Sequence[int]],
    ranks: Sequence[float] = (),
    ends: Sequence[int] = (),
) -> np.ndarray:
    """Return the nearest code in each codebook as (codebook, token) uint16; the lowest id among equals.

    `features` (token, feature) float32; `codebooks` (codebook, code, feature); codebook b covers [from, to) = `bands[b]`.
    With `ranks` the codebooks are one at these weights, and the nearest code, the second nearest ... are returned. `ends`
    are the ends of the clips in `features`, where these are several.
    """
    ends = ends or [len(features)]
    if ranks:
        return _nearest(features, codebooks[0] / np.float32(ranks[0]), ends, len(ranks)).astype(np.uint16)
    tokens = np.empty((len(codebooks), len(features)), dtype=np.uint16)
    rest = features
    for number, (codebook, (start, stop)) in enumerate(zip(codebooks, bands, strict=True)):
        codes = codebook[:, : stop - start]
        (tokens[number],) = _nearest(rest[:, start:stop], codes, ends)
        if any(later < stop and start < end for later, end in bands[number + 1 :]):
            rest = rest.copy() if rest is features else rest
            rest[:, start:stop] -= codes[tokens[number]]
    return tokens


def _nearest(features: np.ndarray, codes: np.ndarray, ends: Sequence[int], count: int = 1) -> np.ndarray:
    """Return argmin over codes c of |x - c|^2 = argmax of x . c - |c|^2 / 2, for each x, and the next: (count, frame) int64.

    The second term rides in the matrix product as one more feature: a pass over the scores costs more than it.
    """
    num_codes, width = codes.shape
    device = choose_device(len(features) * num_codes)
    if device is not None:
        return nearest_on(device, features, codes, count)
    weights = np.empty((width + 1, num_codes), dtype=np.float32)
    weights[:-1] = codes.T
    weights[-1] = -0.5 * np.einsum("cf,cf->c", codes, codes, dtype=np.float64)
    block = max(64, _SCORES_PER_BLOCK // num_codes)
    blocks = [
        slice(start, min(start + block, stop))
        for first, stop in pairwise([0, *ends])
        for start in range(first, stop, block)
    ]
    nearest = np.empty((count, len(features)), dtype=np.int64)

    def search(own: list[slice]) -> None:
        inputs = np.ones((block, width + 1), dtype=np.float32)
        scores = np.empty((block, num_codes), dtype=np.float32)
        for rows in own:
            size = rows.stop - rows.start
            inputs[:size, :-1] = features[rows]
            np.matmul(inputs[:size], weights, out=scores[:size])
            for rank in range(count):
                found = nearest[rank, rows]
                scores[:size].argmax(axis=1, out=found)
                if rank + 1 < count:
                    scores[np.arange(size), found] = -np.inf

    threads = usable_threads()
    map_threads(search, [blocks[thread::threads] for thread in range(min(threads, len(blocks)))])
    return nearest
