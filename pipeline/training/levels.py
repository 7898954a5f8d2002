"""Metadata of networks that read levels: frames decoded from tokens, and texture statistics.

The floor of texture statistics is fitted on training clips, and stored with the network beside its normalisation.

Conventions: frames (frame, mel) float32 in the front end's units.
"""

from collections.abc import Sequence

import numpy as np

from pipeline.artifacts.model import InputMetadata
from pipeline.artifacts.vocabulary import Vocabulary
from pipeline.errors import ParamsError
from pipeline.models.baselines.base import LazyClips
from pipeline.models.baselines.texture_inputs import decode_tokens, frame_table
from pipeline.models.baselines.texture_statistics import log_unit_of, silence_floor
from pipeline.models.network import NetworkParams
from pipeline.training.inputs import Inputs

_FLOOR_CLIPS = 4096  # drawn evenly from the training clips, to estimate the floor


def level_metadata(
    params: NetworkParams, inputs: Inputs, clip_ids: Sequence[str], vocabulary: Vocabulary | None
) -> InputMetadata:
    """Return what a network needs for frames decoded from tokens, and for texture statistics; nothing for others.

    Raises ParamsError for a vocabulary that does not decode to sums, or a front end without levels.
    """
    metadata = InputMetadata()
    if params.input.decodes_tokens:
        assert vocabulary is not None  # the stage opens it for all that read tokens
        metadata["n_mels"], metadata["log_floor"] = inputs.front_end["n_mels"], inputs.front_end["log_floor"]
        metadata["frames_per_token"] = vocabulary.space.stack
    if params.stem.texture_quantile is not None:
        log_unit = log_unit_of(inputs.front_end)
        if log_unit is None:
            raise ParamsError(
                f"models.*.stem.kind {params.stem.kind}: expected log-mel frames in one channel, found front end "
                f"{inputs.front_end['front_end']}; use front end kaldi or mel, or another stem"
            )
        frames = _frames(inputs, clip_ids[:: -(-len(clip_ids) // _FLOOR_CLIPS)], vocabulary)
        metadata["frame_rate"], metadata["log_unit"] = inputs.frame_rate, log_unit
        metadata["texture_floor"] = silence_floor(frames, params.stem.texture_quantile) * log_unit
    return metadata


def _frames(inputs: Inputs, clip_ids: Sequence[str], vocabulary: Vocabulary | None) -> Sequence[np.ndarray]:
    """Return the frames of clips, read one at a time, or those that their tokens stand for."""
    if not inputs.time_axis:
        return LazyClips(len(clip_ids), lambda clip: inputs.arrays([clip_ids[clip]])[0])
    assert vocabulary is not None
    table = frame_table(vocabulary, "models.*.input.kind decoded_tokens")
    return LazyClips(len(clip_ids), lambda clip: decode_tokens(*table, inputs.arrays([clip_ids[clip]])[0]))
