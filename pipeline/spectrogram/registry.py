"""Registry of front ends: names of `spectrogram.front_end.kind`, and their classes."""

from typing import Annotated

from pipeline.registry import Registry
from pipeline.spectrogram.front_end import FrontEnd, FrontEndSection

FRONT_ENDS: "Registry[type[FrontEnd]]" = Registry(
    "front end",
    {
        "kaldi": "pipeline.spectrogram.kaldi:KaldiFrontEnd",
        "mel": "pipeline.spectrogram.mel:MelFrontEnd",
        "scaled_mel": "pipeline.spectrogram.scaled_mel:ScaledMelFrontEnd",
    },
)

FrontEndParams = Annotated[FrontEndSection, FRONT_ENDS.params]  # the section of one kind


def build_front_end(params: FrontEndParams) -> FrontEnd:
    """Build the front end that `params.kind` names."""
    return FRONT_ENDS[params.kind](params)
