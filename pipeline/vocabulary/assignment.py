"""Assignment of tokens to clips: frames become features, and the vocabulary's kind encodes them.

Of a vocabulary of hidden states, "frames" are these; `pipeline/evaluation/tokenizing.py` assigns tokens to frames by any.

Conventions: frames (frame, mel) float32 in the front end's units; features (token, feature), see
`pipeline/vocabulary/features.py`; tokens (codebook, token) uint16. What is computed depends on the vocabulary's artifact
alone, never on params.yaml.

A clip's tokens follow from its own frames to the bit: no matrix product takes rows of two clips, and each is computed on
one thread.
"""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from pipeline.artifacts.vocabulary import Codebooks, FeatureSpace, Vocabulary
from pipeline.errors import CorpusError
from pipeline.execution.threads import single_threaded
from pipeline.vocabulary.batching import clip_batches
from pipeline.vocabulary.bpe import interleave, merger_of
from pipeline.vocabulary.device import choose_device
from pipeline.vocabulary.features import clip_features
from pipeline.vocabulary.registry import KINDS

# As many frames are normalised and scored before the next ones are looked at: what is allocated for them is memory that
# was used before, and mostly still in the cache. Memory that the system hands out anew costs as much as 256 tokens do.
_FRAMES_PER_BLOCK = 1 << 14


def assign(vocabulary: Vocabulary, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the tokens of each clip (frame, mel) as tokens (codebook, token) uint16; stacks and slopes end with their clip.

    Merged tokens make one sequence, as though there were one codebook. Raises CorpusError when a frame is not finite, since
    its nearest token could be any.
    """
    what = f"frames for {vocabulary.path}"
    tokens = base_tokens(vocabulary.space, vocabulary.kind, vocabulary.fitted, clips, what=what)
    if not vocabulary.merged:
        return tokens
    num_codebooks, size = vocabulary.codebooks.shape[:2]
    merger = merger_of(vocabulary.merges, num_codebooks * size)
    return [merger.merge(interleave(clip, size))[None] for clip in tokens]


@single_threaded()
def base_tokens(
    space: FeatureSpace, kind: str, codebooks: Codebooks, clips: Sequence[np.ndarray], *, what: str
) -> list[np.ndarray]:
    """Return the tokens of each clip (frame, mel) before any merging: tokens (codebook, token) uint16.

    Raises CorpusError, which says `what` the clips are, when a frame is not finite.
    """
    lengths = [len(clip) for clip in clips]
    on_processor = choose_device(sum(lengths) * codebooks.codes.shape[1]) is None
    limit = _FRAMES_PER_BLOCK if on_processor else sum(lengths)
    tokens: list[np.ndarray] = []
    for block in clip_batches(range(len(clips)), lengths.__getitem__, frames_per_batch=limit):
        features = clip_features(space, [clips[number] for number in block])
        _require_finite(features, clips, what)
        ends = list(accumulate(space.num_tokens(lengths[number]) for number in block))
        tokens += np.split(KINDS[kind].encode(codebooks, features, ends), ends[:-1], axis=1)
    return tokens


def _require_finite(features: np.ndarray, clips: Sequence[np.ndarray], what: str) -> None:
    if not np.isfinite(features.sum()):
        bad = sum(int((~np.isfinite(clip).all(axis=1)).sum()) for clip in clips)
        raise CorpusError(
            f"{what}: expected finite numbers, found {bad} frames of {sum(map(len, clips))} with NaN or "
            "infinity; the front end floors the logarithm, so the stored frames are damaged: rerun the stage spectrogram"
        )
