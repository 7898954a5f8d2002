"""Tokens of augmented frames: assignment of a padded batch to a fold's vocabulary, on the batch's device.

The search is that of exported graphs (`pipeline/vocabulary/torch_search.py`), so that frames which nothing changed get the
tokens that are stored, but for those that lie equally far from two codes, to rounding.

Conventions: frames (B, T, mel) float32 in the front end's units; tokens (B, codebook, S) int64, where S counts the frames,
or stacks of them, that are coded. Masks (B, T) and (B, S) are True for what is real, which comes first; None = all.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.artifacts.vocabulary import Vocabulary
from pipeline.training.augmentation.time import take_frames
from pipeline.vocabulary.torch_search import TokenSearch

# Scores of frames and codes that are in memory at once: on a CPU they stay in its cache.
_SCORES_AT_ONCE = {"cpu": 1 << 20}
_SCORES_ELSEWHERE = 1 << 27
_INSTEAD = "set train.augmentation.retokenize to false"


class Retokenizer:
    """Assignment of the frames of training clips to a vocabulary, clip by clip where they are long."""

    def __init__(self, vocabulary: Vocabulary, means: Sequence[float]) -> None:
        """Take the vocabulary, and the mean over the training clips of each channel of their frames.

        Raises SonolexError for a vocabulary that frames cannot be assigned to by torch.
        """
        self._search = TokenSearch(vocabulary, instead=_INSTEAD)
        self._stack, self._padding = vocabulary.space.stack, vocabulary.num_tokens
        self._num_codes = vocabulary.fitted.codes.shape[1]
        num_mels = len(vocabulary.space.mean)
        self._mean = torch.from_numpy(np.repeat(means, num_mels // len(means)).astype(np.float32))

    def fill(self, frames: Tensor, mask: Tensor | None) -> Tensor:
        """Set padding to the mean frame, as which mix-up of logarithms takes a clip beyond its end."""
        if mask is None:
            return frames
        return torch.where(mask[:, :, None], frames, self._mean.to(frames.device))

    @torch.no_grad()
    def assign(self, frames: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the tokens of each clip, with the padding token behind them, and their mask."""
        search = self._search.to(frames.device)
        scores = frames.shape[1] * self._num_codes
        size = max(1, _SCORES_AT_ONCE.get(frames.device.type, _SCORES_ELSEWHERE) // scores)
        tokens = torch.cat([search(clips) for clips in torch.split(_repeat_last(frames, mask), size)])
        if mask is None:
            return tokens, None
        counts = (mask.sum(1, keepdim=True) + self._stack - 1) // self._stack
        real = torch.arange(tokens.shape[2], device=mask.device) < counts
        return tokens.masked_fill(~real[:, None, :], self._padding), real


def _repeat_last(frames: Tensor, mask: Tensor | None) -> Tensor:
    """Return frames in which padding repeats a clip's last frame, as slopes and stacks take a clip beyond its end."""
    if mask is None:
        return frames
    places = torch.arange(frames.shape[1], device=frames.device)
    last = mask.sum(1, keepdim=True) - 1
    return take_frames(frames, torch.minimum(places, last))
