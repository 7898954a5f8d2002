"""Registry of front ends: names of `spectrogram.front_end.kind`, and their classes."""

from typing import Annotated

from pipeline.artifacts.spectrogram import FrontEndMetadata
from pipeline.params import validate_params
from pipeline.registry import Registry
from pipeline.spectrogram.front_end import FrontEnd, FrontEndSection

FRONT_ENDS: "Registry[type[FrontEnd]]" = Registry(
    "front end",
    {
        "kaldi": "pipeline.spectrogram.kaldi:KaldiFrontEnd",
        "mel": "pipeline.spectrogram.mel:MelFrontEnd",
        "mfcc": "pipeline.spectrogram.mfcc:MfccFrontEnd",
        "scaled_mel": "pipeline.spectrogram.scaled_mel:ScaledMelFrontEnd",
        "stack": "pipeline.spectrogram.stack:StackFrontEnd",
        "waveform": "pipeline.spectrogram.waveform:WaveformFrontEnd",
        "waveform_encoder": "pipeline.spectrogram.waveform_encoder:WaveformEncoder",
    },
)

FrontEndParams = Annotated[FrontEndSection, FRONT_ENDS.params]  # the section of one kind


def build_front_end(params: FrontEndParams) -> FrontEnd:
    """Build the front end that `params.kind` names."""
    return FRONT_ENDS[params.kind](params)


def recorded_front_end(metadata: FrontEndMetadata) -> FrontEnd:
    """Build the front end that the metadata of an artifact records. Raises ParamsError where its params do not fit."""
    section = FRONT_ENDS[metadata["params"]["kind"]].Params
    return build_front_end(
        validate_params(section, {**section.unrecorded, **metadata["params"]}, "front end of the artifact")
    )
