"""Stem of texture statistics: each position has those of a window of the clip, together with those of the whole clip.

The statistics are those of `pipeline/models/baselines/texture_statistics.py`, computed on the fly, without gradients and in
float32. Batch norms standardise them, over real windows alone; in training, noise is added to them and some are dropped.
With `window: null` there is one position, of the whole clip.

Windows lie within their clip, so that the frames after the last one are read by the whole clip's statistics alone; a clip
that is shorter than a window is its only window. The bands of a frame are grouped once, for all windows that it is in.

Conventions: B batch, T time step of the feature map, F feature, S window, D width; a time step has one frame, or those of a
token. Clips of one length are computed together: padding is never read.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator
from torch import Tensor, nn

from pipeline.artifacts.model import InputMetadata
from pipeline.artifacts.spectrogram import FrontEndMetadata
from pipeline.errors import ParamsError
from pipeline.models.baselines.texture_statistics import count_features, log_unit_of, silence_floor
from pipeline.models.baselines.torch_textures import ClipStatistics
from pipeline.models.batch_norm import BatchNorm
from pipeline.models.parts import Input, Stem, StemParams
from pipeline.models.positions import SinusoidalPositions

_FLOOR_CLIPS = 4096  # drawn evenly from the training clips, to estimate the floor


class TexturesParams(StemParams):
    kind: Literal["textures"]
    window: PositiveFloat | None  # seconds; null = the whole clip alone, one position
    hop: PositiveFloat  # seconds between the starts of windows
    floor_quantile: float = Field(ge=0, lt=1)  # of the training frames' values: the floor, below which is silence
    noise: NonNegativeFloat  # standard deviation of what is added to standardised statistics in training
    dropout: float = Field(ge=0, lt=1)  # fraction of a clip's statistics that is set to 0 in training

    @property
    def time_stride(self) -> int | None:
        return None

    @property
    def reads_levels(self) -> bool:
        return True

    def fit(self, front_end: FrontEndMetadata, frame_rate: float, clips: Sequence[np.ndarray]) -> InputMetadata:
        log_unit = log_unit_of(front_end)
        if log_unit is None:
            raise ParamsError(
                "models.*.stem.kind textures: expected log-mel frames in one channel, found front end "
                f"{front_end['front_end']}; use front end kaldi or mel, or another stem"
            )
        few = clips[:: -(-len(clips) // _FLOOR_CLIPS)]
        floor = silence_floor(few, self.floor_quantile) * log_unit
        return InputMetadata(frame_rate=frame_rate, log_unit=log_unit, texture_floor=floor)

    @model_validator(mode="after")
    def _nothing_is_left_out(self) -> "TexturesParams":
        if self.window is not None and self.hop > self.window:
            raise ValueError(
                f"hop: expected at most the window of {self.window:g} s, so that windows cover the clip, found {self.hop:g}"
            )
        return self


class Standardised(nn.Module):
    """Batch norm of statistics (B, S, F), with noise and dropout in training; those of padding count for nothing."""

    def __init__(self, num_statistics: int, params: TexturesParams) -> None:
        super().__init__()
        self.norm = BatchNorm(num_statistics)
        self._noise, self._dropout = params.noise, params.dropout

    def forward(self, statistics: Tensor, mask: Tensor | None) -> Tensor:
        normalised: Tensor = self.norm(statistics.mT[..., None], mask)[..., 0].mT
        if not self.training:
            return normalised
        if self._noise:
            normalised = normalised + self._noise * torch.randn_like(normalised)
        if self._dropout:  # the same statistics in all windows of a clip
            normalised = normalised * F.dropout(torch.ones_like(normalised[:, :1]), self._dropout)
        return normalised


class Textures(Stem):
    """Stem that projects to the encoder's width; for an encoder of any width a position has both statistics in a row."""

    Params = TexturesParams
    projects = None
    supports_masking = False  # what is hidden would count as silence, and change all statistics of the clip

    def __init__(self, params: TexturesParams, source: Input, width: int | None) -> None:
        super().__init__(params, source, width)
        metadata, self._frames_per_step = source.metadata, source.frames_per_step
        rate = metadata["frame_rate"]  # of time steps, Hz
        num_bands, frame_rate = source.num_features // source.num_channels, rate * source.frames_per_step
        self._log_unit = metadata["log_unit"]
        self.statistics = ClipStatistics(metadata["texture_floor"], frame_rate, num_bands)
        count = count_features(num_bands, frame_rate)
        self.whole = Standardised(count, params)
        self.windows: Standardised | None = None
        self.min_frames = 2  # that a change is measured between
        if params.window is not None:
            self.windows = Standardised(count, params)
            self.min_frames = max(1, round(params.window * rate))
            self.stride = min(self.min_frames, max(1, round(params.hop * rate)))
            self.centre = (self.min_frames - 1) / 2
        self.num_features = width or count * (1 if self.windows is None else 2)
        self.project_whole: nn.Linear | None = None
        if width is not None:
            self.project_whole = nn.Linear(count, width)
        if width is not None and self.windows is not None:
            self.project_windows = nn.Linear(count, width, bias=False)
            self.positions = SinusoidalPositions(width)

    def forward(self, features: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
            columns = self._grouped(features.float())
            of_clips = self._of_clips(columns, mask)
            of_windows, real = (of_clips, None) if self.windows is None else self._of_windows(columns, mask, of_clips)
        whole = self.whole(of_clips, None)
        projected = whole if self.project_whole is None else self.project_whole(whole)
        if self.windows is None:
            return projected, None
        windows = self.windows(of_windows, real)
        if self.project_whole is None:
            return torch.cat([windows, projected.expand(-1, windows.shape[1], -1)], dim=2), real
        return self.project_windows(windows) + projected + self.positions(windows.shape[1]), real

    def real_time_steps(self, mask: Tensor, num_time_steps: int) -> Tensor:
        """Return which windows lie within their clip, the first one always."""
        counts = (mask.sum(1) - self.min_frames).clamp(min=0) // self.stride + 1
        return torch.arange(num_time_steps, device=mask.device) < counts[:, None]

    def frames_of(self, num_time_steps: int, num_frames: int) -> np.ndarray:
        """Return which frames each window holds, (S, T) bool."""
        if self.windows is None:
            return np.ones((num_time_steps, num_frames), dtype=np.bool_)
        frame, starts = np.arange(num_frames), np.arange(num_time_steps)[:, None] * self.stride
        return np.asarray((frame >= starts) & (frame < starts + self.min_frames))

    def _grouped(self, features: Tensor) -> Tensor:
        """Return the band groups and cepstra of a feature map (B, T, F), (B, T, frame, column)."""
        frames = torch.unflatten(features, 2, (self._frames_per_step, -1)) * self._log_unit
        return self.statistics.project(frames)

    def _of_clips(self, columns: Tensor, mask: Tensor | None) -> Tensor:
        """Return the statistics of whole clips, (B, 1, F)."""
        if mask is None:
            return self._summarise(columns)[:, None]
        lengths = mask.sum(1).clamp(min=1)
        by_length = {length: lengths == length for length in torch.unique(lengths).tolist()}
        found = {length: self._summarise(columns[clips, :length]) for length, clips in by_length.items()}
        statistics = columns.new_empty(len(columns), next(iter(found.values())).shape[1])
        for length, clips in by_length.items():
            statistics[clips] = found[length]
        return statistics[:, None]

    def _of_windows(self, columns: Tensor, mask: Tensor | None, of_clips: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the statistics (B, S, F) of windows, and which are real (B, S); None = all."""
        longest = columns.shape[1]
        if longest < self.min_frames:
            return of_clips, None
        starts = torch.arange((longest - self.min_frames) // self.stride + 1, device=columns.device) * self.stride
        frames = starts[:, None] + torch.arange(self.min_frames, device=columns.device)  # (S, T)
        if mask is None:
            windows = self._summarise(columns[:, frames].flatten(0, 1))
            return torch.unflatten(windows, 0, (columns.shape[0], -1)), None
        real = self.real_time_steps(mask, len(starts))
        statistics = of_clips.where(real[:, :, None], 0)  # of clips shorter than a window, which have one
        whole = real & (mask.sum(1) >= self.min_frames)[:, None]
        clips, places = whole.nonzero(as_tuple=True)
        statistics[whole] = self._summarise(columns[clips[:, None], frames[places]])
        return statistics, real

    def _summarise(self, columns: Tensor) -> Tensor:
        """Return the statistics (clip, F) of clips of one length, (clip, T, frame, column)."""
        columns = columns.flatten(1, 2)
        if columns.shape[1] == 1:  # no change between frames
            columns = columns.expand(-1, 2, -1)
        return self.statistics.summarise(columns)
