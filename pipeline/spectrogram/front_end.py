"""Interface of front ends, which compute frames of waveforms: log-mel, alone or with other features.

A front end is one file with one class, and one line of `pipeline/spectrogram/registry.py`.

Conventions: waveforms (sample,) or (clip, sample) float32 in [-1, 1]; frames (frame, mel) or (clip, frame, mel) float32; the
values of several channels stand one channel after another along `mel`, log-mel first.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import numpy as np

from pipeline.artifacts.spectrogram import FrontEndMetadata
from pipeline.params import Params


class FrontEndSection(Params):
    """Base of the sections of front ends."""

    kind: str

    has_levels: ClassVar[bool] = True  # frames say how loud bands are, which near-duplicates are found by
    has_samples: ClassVar[bool] = False  # frames are samples of the waveform itself
    unrecorded: ClassVar[Mapping[str, object]] = {}  # key -> value that artifacts do not record, see `recorded`

    def recorded(self) -> dict[str, object]:
        """Return the settings as artifacts record them.

        Settings with their value of `unrecorded` are left out, so that a setting which a front end gains changes no
        artifact that was made without it.
        """
        return {key: value for key, value in self.model_dump().items() if self.unrecorded.get(key, ...) != value}

    @property
    def is_log_mel(self) -> bool:
        """Whether frames are the levels of mel bands, in one channel."""
        return True

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        raise NotImplementedError


class Inversion(NamedTuple):
    """Settings of a front end that inversion from log-mel frames needs (`pipeline/spectrogram/inversion.py`)."""

    filters: np.ndarray  # (mel, bin) float32
    window: np.ndarray  # (sample,) float64, of win_length
    log_base: float  # log-mel values are logarithms of band powers to this base
    pre_emphasis: float  # coefficient; 0 = none
    before: int  # samples of the clip before the middle of its first window
    exponent: int = 2  # of the magnitudes that bands are sums of: 2 = power, 1 = magnitude
    offset: float = 0.0  # that is added to a band before the logarithm
    scale: float = 1.0  # factor on samples


class FrontEnd(ABC):
    """Computes log-mel frames of waveforms."""

    Params: ClassVar[type[FrontEndSection]]
    invertible: ClassVar[bool] = True  # a waveform can be made of frames; else `inversion` says only where frames lie
    min_samples: int  # of the shortest clip with a frame
    empty_bands: list[int]  # bands without any FFT bin, always at the floor

    @abstractmethod
    def __init__(self, params: FrontEndSection) -> None: ...

    @property
    @abstractmethod
    def metadata(self) -> FrontEndMetadata:
        """Return what an artifact of these frames must say of them."""

    @property
    @abstractmethod
    def inversion(self) -> Inversion:
        """Return what it takes to make a waveform of frames."""

    @abstractmethod
    def num_frames(self, num_samples: int) -> int:
        """Return how many frames a clip of so many samples has."""

    @abstractmethod
    def log_mel(self, waveforms: np.ndarray) -> np.ndarray:
        """Return the frames (frame, mel) float32 of a waveform (sample,), or (clip, frame, mel) of (clip, sample)."""
