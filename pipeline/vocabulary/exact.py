"""Lloyd's algorithm over all training frames, from where the fit on the sample ended; out of core.

Frames are read batch by batch in every pass, and what is kept are sums over tokens, so memory does not grow with the corpus.

Conventions: as in `pipeline/vocabulary/fitting.py`. Codebooks that code what others leave over (residual tokens) are all
moved at once, to the means of what each of them was given. Nothing proves that this never loses, as it does for one
codebook, so the best codes of all passes are kept.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.artifacts.vocabulary import Codebooks
from pipeline.execution.threads import single_threaded
from pipeline.vocabulary.batching import clip_batches
from pipeline.vocabulary.features import clip_features
from pipeline.vocabulary.fitting import Fit
from pipeline.vocabulary.registry import KINDS
from pipeline.vocabulary.sampling import ClipFrames

log = logging.getLogger(__name__)

FRAMES_PER_BATCH = 1 << 16  # 64 MiB of float64 at 128 mel bands
_SETTLED = 1e-4  # of the distortion; a pass that gains less is the last


@single_threaded()
def refine(fit: Fit, reader: ClipFrames, clip_ids: Sequence[str], *, iterations: int) -> Fit:
    """Return the vocabulary after at most `iterations` updates from all frames of the usable clips among `clip_ids`.

    `exact` of the result says how many updates it took, and the distortion over all these frames before and after:
    |f - decoded f|^2 over |f - mean of f|^2, summed over their features f.
    """
    clips = sorted(reader.ok(clip_ids))
    codebooks = best = fit.codebooks
    history: list[float] = []
    for update in range(iterations + 1):
        found = _pass_over(fit, codebooks, reader, clips)
        history.append(found.distortion)
        log.info("update %d over %d tokens of training clips: distortion %.5f", update, found.num_tokens, history[-1])
        if history[-1] == min(history):
            best = codebooks
        if update and history[-1] > (1 - _SETTLED) * history[-2]:
            break
        codebooks = replace(codebooks, codes=found.means(codebooks.codes))
    exact = {
        "iterations": len(history) - 1,
        "tokens": found.num_tokens,
        "distortion_before": round(history[0], 6),
        "distortion_after": round(min(history), 6),
    }
    return replace(fit, codebooks=best, exact=exact)


@dataclass
class _Pass:
    """Sums over all tokens of the clips."""

    sums: np.ndarray  # (codebook, code, feature) float64, of what each codebook was given
    counts: np.ndarray  # (codebook, code) int64
    total: np.ndarray  # (feature,) float64
    squares: float = 0.0  # of the features
    error: float = 0.0  # squares of what all codebooks leave over
    num_tokens: int = 0

    @property
    def distortion(self) -> float:
        spread = self.squares - float((self.total**2).sum()) / max(self.num_tokens, 1)
        return self.error / spread if spread > 0 else 0.0

    def means(self, codes: np.ndarray) -> np.ndarray:
        """Return the means of what each code was given; `codes` that were given nothing stay."""
        means = self.sums / np.maximum(self.counts, 1)[:, :, None]
        moved: np.ndarray = np.where(self.counts[:, :, None] > 0, means, codes).astype(np.float32)
        return moved


def _pass_over(fit: Fit, codebooks: Codebooks, reader: ClipFrames, clips: Sequence[str]) -> _Pass:
    from scipy.sparse import csr_array

    codes = codebooks.codes
    size = codes.shape[1]
    found = _Pass(np.zeros(codes.shape), np.zeros(codes.shape[:2], np.int64), np.zeros(fit.space.num_features))
    for batch in clip_batches(clips, reader.num_frames, frames_per_batch=FRAMES_PER_BATCH):
        features = clip_features(fit.space, reader.read(batch))
        tokens = KINDS[fit.kind].encode(codebooks, features)
        rest = features.astype(np.float64)
        found.num_tokens += len(rest)
        found.total += rest.sum(axis=0)
        found.squares += float((rest**2).sum())
        for number, (row, (start, stop)) in enumerate(zip(tokens, codebooks.bands, strict=True)):
            given = rest[:, start:stop]
            chosen = csr_array((np.ones(len(row)), row, np.arange(len(row) + 1)), shape=(len(row), size))
            found.sums[number, :, : stop - start] += chosen.T @ given
            found.counts[number] += np.bincount(row, minlength=size)
            given -= codes[number, row, : stop - start]
        found.error += float((rest**2).sum())
    return found
