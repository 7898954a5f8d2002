"""Windows of a network: a clip is cut into parts of one length, each is classified, and their probabilities are pooled.

This is part of the network's forward pass, so training, evaluation, prediction and export have the same windows, and loss
and metrics are those of whole clips. The first window starts with the clip; the last one reaches its end. Probabilities are
pooled as in `pipeline/inference/windows.py`: the logits of a clip are those of the mean or the maximum of its windows'
probabilities, and not a mean of logits, in which one window that is very sure outweighs all others. With the softmax the
maxima of the classes are normalised to a sum of 1.

Conventions: B batch, T frame of a clip, F feature, W window of a clip, M window of a batch, L frame of a window, N position,
D width, K class. Starts and lengths count frames, or tokens, which have a lower rate where they stand for several frames.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import PositiveFloat, model_validator
from torch import Tensor, nn

from pipeline.artifacts.clips import Link
from pipeline.params import Params


class WindowParams(Params):
    length: PositiveFloat  # seconds
    hop: PositiveFloat  # seconds between the starts of windows
    # The last window: shift = ends with the clip; repeat = goes on with the clip's start; silence = is filled with silence.
    fill: Literal["shift", "repeat", "silence"]
    pooling: Literal[
        "mean", "max", "attention"
    ]  # of probabilities; attention = mean with learned weights for each class

    @model_validator(mode="after")
    def _nothing_is_left_out(self) -> "WindowParams":
        if self.hop > self.length:
            raise ValueError(
                f"hop: expected at most the length of {self.length:g} s, so that windows cover the clip, found {self.hop:g}"
            )
        return self


class Cut(NamedTuple):
    """Windows of a batch, without those that would hold padding alone."""

    features: Tensor  # (M, L, F)
    mask: Tensor | None  # (M, L): real frames; None = all
    real: Tensor | None  # (B, W): windows that clips have, in the order of M; None = all
    num_windows: int  # W

    def by_clip(self, values: Tensor) -> Tensor:
        """Return values (M, K) as (B, W, K); 0 where a clip has no window."""
        if self.real is None:
            return torch.unflatten(values, 0, (-1, self.num_windows))
        placed = values.new_zeros((*self.real.shape, values.shape[1]))
        placed[self.real] = values
        return placed


class Windows(nn.Module):
    """Cutting of feature maps into windows, and pooling of the windows' logits."""

    def __init__(
        self, params: WindowParams, frame_rate: float, silence: float, link: Link, num_features: int, num_classes: int
    ) -> None:
        """Build for a frame rate in Hz, silence on the feature map's scale, and D of the encoder's output."""
        super().__init__()
        self.length = max(1, round(params.length * frame_rate))  # L
        self.hop = min(self.length, max(1, round(params.hop * frame_rate)))
        self.seconds = params.length
        self._fill, self._pooling = params.fill, params.pooling
        self._silence, self._link = silence, link
        self.attend = nn.Linear(num_features, num_classes) if params.pooling == "attention" else None

    def count(self, num_frames: int) -> int:
        """Return the number of windows of a clip."""
        if num_frames < self.length:
            return 1
        return 1 + (num_frames - self.length + self.hop - 1) // self.hop

    def frames_read(self, num_frames: int) -> int:
        """Return the number of frames of all windows of a clip."""
        return self.count(num_frames) * self.length

    def middles(self, num_frames: int) -> np.ndarray:
        """Return the middle of the frames of the clip in each window, (W,)."""
        starts = np.arange(self.count(num_frames)) * self.hop
        if self._fill == "shift":
            starts = np.minimum(starts, max(0, num_frames - self.length))
        return np.asarray((starts + np.minimum(starts + self.length, num_frames) - 1) / 2)

    def cut(self, features: Tensor, mask: Tensor | None) -> Cut:
        """Cut a feature map (B, T, F), with the mask (B, T) of its real frames."""
        if mask is None:
            frames, inside = self._frames(
                torch.full((1,), features.shape[1], device=features.device), features.shape[1]
            )
            windows = self._filled(features[:, frames[0]], inside).flatten(0, 1)
            short = self._fill == "shift" and features.shape[1] < self.length
            return Cut(windows, inside[0].repeat(features.shape[0], 1) if short else None, None, frames.shape[1])
        lengths = mask.sum(1)
        frames, inside = self._frames(lengths, features.shape[1])
        counts = 1 + (lengths - self.length).clamp(min=0).add(self.hop - 1).div(self.hop, rounding_mode="floor")
        real = torch.arange(frames.shape[1], device=mask.device) < counts[:, None]
        clips = real.nonzero()[:, :1]
        windows, within = self._filled(features[clips, frames[real]], inside[real]), inside[real]
        return Cut(windows, None if self._fill != "shift" or within.all() else within, real, real.shape[1])

    def weigh(self, positions: Tensor, mask: Tensor | None, num_class_tokens: int) -> Tensor | None:
        """Return attention (M, K) of windows, before the softmax, from the encoder's output (M, N, D); None without any.

        It reads the mean of the class tokens, or of all real positions where there are none.
        """
        if self.attend is None:
            return None
        if num_class_tokens:
            positions, mask = positions[:, :num_class_tokens], None
        real = torch.ones_like(positions[:, :, :1]) if mask is None else mask[:, :, None].to(positions.dtype)
        weights: Tensor = self.attend((positions * real).sum(1) / real.sum(1).clamp(min=1))
        return weights

    def pool(self, logits: Tensor, weights: Tensor | None, real: Tensor | None) -> Tensor:
        """Pool the logits (B, W, K) of windows, with their attention (B, W, K) if there is any, to (B, K)."""
        logits = logits.float()
        present = F.logsigmoid(logits) if self._link == "sigmoid" else logits.log_softmax(2)
        if self._pooling == "max":
            scores = logits if self._link == "sigmoid" else present
            return scores.masked_fill(~_by_class(real, scores), -torch.inf).amax(1)
        shares = torch.zeros_like(logits) if weights is None else weights.float()
        shares = shares.masked_fill(~_by_class(real, shares), -torch.inf).log_softmax(1)
        pooled = torch.logsumexp(shares + present, dim=1)
        return pooled if self._link == "softmax" else pooled - torch.logsumexp(shares + F.logsigmoid(-logits), dim=1)

    def _frames(self, lengths: Tensor, longest: int) -> tuple[Tensor, Tensor]:
        """Return which frame of its clip each frame of each window is, and whether it lies within the clip: (B, W, L)."""
        starts = torch.arange(self.count(longest), device=lengths.device) * self.hop
        starts = starts.expand(len(lengths), -1)
        if self._fill == "shift":
            starts = torch.minimum(starts, (lengths - self.length).clamp(min=0)[:, None])
        frames = starts[:, :, None] + torch.arange(self.length, device=lengths.device)
        inside = frames < lengths[:, None, None]
        frames = frames % lengths[:, None, None] if self._fill == "repeat" else frames.clamp(max=longest - 1)
        return frames, inside

    def _filled(self, windows: Tensor, inside: Tensor) -> Tensor:
        """Return windows with silence outside of their clips, where that is how they are filled."""
        return windows.masked_fill(~inside[..., None], self._silence) if self._fill == "silence" else windows


def _by_class(real: Tensor | None, logits: Tensor) -> Tensor:
    """Return which of (B, W, K) are of windows that clips have."""
    return torch.ones_like(logits, dtype=torch.bool) if real is None else real[:, :, None].expand_as(logits)
