"""Tokens of frames by any vocabulary that computes them, those of hidden states of a network included.

The network's code is loaded through a registry: only for vocabularies of hidden states, and only their stages depend on it.

Conventions: frames (frame, mel) float32 in the front end's units; tokens (codebook, token) uint16.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.artifacts.vocabulary import Vocabulary
from pipeline.registry import Registry
from pipeline.vocabulary.assignment import assign
from pipeline.vocabulary.hidden_states import StateReader
from pipeline.vocabulary.sampling import ClipFrames

if TYPE_CHECKING:
    from pipeline.evaluation.hidden_states import HiddenStates
    from pipeline.vocabulary.settings import HiddenStateParams

HIDDEN_STATES = "hidden_states"
OUTPUT = "encoder"  # the layer that a vocabulary reads which names none

SOURCES: "Registry[type[HiddenStates]]" = Registry(
    "source of hidden states", {"hidden_states": "pipeline.evaluation.hidden_states:HiddenStates"}
)


def tokenize_clips(vocabulary: Vocabulary, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the tokens of each clip, given by its frames. Raises what `assign` raises."""
    if vocabulary.network is None:
        return assign(vocabulary, clips)
    about = vocabulary.metadata["hidden_states"]
    source = _open_recorded(vocabulary.network, about["layer"], about["network"])
    return assign(vocabulary, [source.states(clip) for clip in clips])


@lru_cache(maxsize=8)
def _open_recorded(folder: Path, layer: str, _digest: str) -> "HiddenStates":
    return SOURCES[HIDDEN_STATES].open(folder, layer)


def open_state_reader(
    params: "HiddenStateParams | None", reader: ClipFrames, folder: Path | None
) -> StateReader | None:
    """Return the reader of hidden states by the network in a folder; None for a vocabulary of frames.

    Raises SonolexError for a layer that the network has not.
    """
    if params is None:
        return None
    assert folder is not None  # the stage knows it
    return StateReader(reader, folder, SOURCES[HIDDEN_STATES].open(folder, params.layer or OUTPUT))
