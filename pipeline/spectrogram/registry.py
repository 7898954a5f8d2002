"""Registry of the front ends.

A front end is one class that implements `FrontEnd`, with its section of params.yaml as the attribute `Params`, from which it
is built; and one line here.
"""

from typing import Annotated, Any, Protocol

import numpy as np

from pipeline.registry import Registry


class FrontEnd(Protocol):
    """Interface of front ends, which compute log-mel frames of waveforms; see `pipeline/spectrogram/kaldi.py`."""

    min_samples: int  # of the shortest clip with a frame
    empty_bands: list[int]  # bands without any FFT bin, always at the floor

    @property
    def metadata(self) -> dict[str, Any]: ...
    def num_frames(self, num_samples: int) -> int: ...
    def log_mel(self, waveforms: np.ndarray) -> np.ndarray: ...


FRONT_ENDS = Registry(
    "front end",
    {
        "kaldi": "pipeline.spectrogram.kaldi:KaldiFrontEnd",
        "mel": "pipeline.spectrogram.mel:MelFrontEnd",
    },
)

FrontEndParams = Annotated[Any, FRONT_ENDS.params]  # the section of one kind


def build_front_end(params: FrontEndParams) -> FrontEnd:
    """Build the front end that `params.kind` names."""
    front_end: FrontEnd = FRONT_ENDS[params.kind](params)
    return front_end
