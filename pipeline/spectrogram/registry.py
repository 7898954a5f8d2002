"""The front ends. A new one is one file, one entry of `FRONT_ENDS`, one member of `FrontEndParams`."""

from collections.abc import Callable
from typing import Annotated, Any, Protocol

import numpy as np
from pydantic import Field

from pipeline.spectrogram.kaldi import KaldiFrontEnd, KaldiParams
from pipeline.spectrogram.mel import MelFrontEnd, MelParams


class FrontEnd(Protocol):
    """What turns a waveform into frames; see `pipeline/spectrogram/kaldi.py`."""

    min_samples: int  # fewer make no frame
    empty_bands: list[int]  # bands without any FFT bin, always at the floor

    @property
    def facts(self) -> dict[str, Any]: ...
    def num_frames(self, num_samples: int) -> int: ...
    def log_mel(self, waveforms: np.ndarray) -> np.ndarray: ...


FrontEndParams = Annotated[KaldiParams | MelParams, Field(discriminator="kind")]

FRONT_ENDS: dict[str, Callable[[Any], FrontEnd]] = {"kaldi": KaldiFrontEnd, "mel": MelFrontEnd}


def build_front_end(params: KaldiParams | MelParams) -> FrontEnd:
    """Build the front end that `params.kind` names."""
    return FRONT_ENDS[params.kind](params)
