"""Hidden states of a trained network: the vectors of one of its layers along the time of a clip.

A state stands for as many frames as lie between two time steps of the layer. A clip has one for each, the last of which
may be fewer: where the network has no time step for a clip's last frames, since a patch would reach beyond its end, its
last one stands for them. A clip that is longer than the network reads at once (`stem.positions.frames`, a model's `window`,
or a batch) is read in parts of that length, one after the other.

Each clip is computed by itself, on one thread, so that its states depend on its own frames to the bit. A network with kept
epochs counts with the weights at the end of training.

Conventions: frames (frame, mel) float32 in the front end's units; states (state, width) float32; what the network reads
(step, feature) are these frames, or the tokens of its own vocabulary.
"""

from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.artifacts.model import TrainedModel, open_model
from pipeline.artifacts.tables import metadata_digest
from pipeline.artifacts.vocabulary import TOKENIZER, HiddenStateMetadata, Vocabulary, open_vocabulary
from pipeline.errors import SonolexError
from pipeline.evaluation.network_layers import Layer, LayerOutputs, choose_layer
from pipeline.evaluation.network_prediction import build_network
from pipeline.evaluation.tokenizing import HIDDEN_STATES, tokenize_clips
from pipeline.execution.code import kinds_in
from pipeline.execution.threads import single_threaded_torch
from pipeline.models.network import Network
from pipeline.training.batches import normalise
from pipeline.training.inputs import FRAMES_PER_BATCH


class HiddenStates:
    """A network, and the layer whose vectors are read."""

    def __init__(self, model: TrainedModel, tokenizer: Vocabulary | None, layer: str) -> None:
        """Build the network; `tokenizer` is the vocabulary of the tokens that it reads.

        Raises SonolexError for a layer that the network has not, or that has no time steps.
        """
        self._model, self._tokenizer, self._name = model, tokenizer, layer
        self._network = build_network(model)
        self._layer = require_layer(self._network, layer)
        self._outputs = LayerOutputs(self._network, [layer])

    @classmethod
    def open(cls, folder: Path, layer: str) -> "HiddenStates":
        """Open the folder that the stage `network` writes. Raises SonolexError as the constructor does."""
        model, path = open_model(folder), folder / TOKENIZER
        tokenizer = open_vocabulary(path) if model.metadata["source"] else None
        found = tokenizer.digest() if tokenizer else ""
        if found != model.metadata["source"]:
            raise SonolexError(
                f"{path}: expected the vocabulary of digest {model.metadata['source']}, which the network reads, found "
                f"{found}; run `dvc repro`"
            )
        return cls(model, tokenizer, layer)

    @cached_property
    def metadata(self) -> HiddenStateMetadata:
        about = self._model.metadata
        kinds = {HIDDEN_STATES} | kinds_in(about["params"]) | (self._tokenizer.kinds if self._tokenizer else set())
        return {
            "model": about["model"],
            "layer": self._name,
            "width": self._layer.dim,
            "frames_per_state": self._layer.stride * self._frames_per_step,
            "network": metadata_digest(about),
            "kinds": sorted(kinds),
        }

    def states(self, frames: np.ndarray) -> np.ndarray:
        """Return the states of a clip: one for every `frames_per_state` frames."""
        with single_threaded_torch():
            steps = self._steps(frames)
            parts = [self._states(part) for part in torch.split(steps, self._part, dim=self._time_axis)]
        return np.concatenate(parts)

    @torch.no_grad()
    def _states(self, steps: Tensor) -> np.ndarray:
        """Return the states of a part of a clip, (1, step, feature) or (1, codebook, step)."""
        num_steps = steps.shape[self._time_axis]
        vectors = self._layer.read(self._outputs.of(steps)[self._name][0])
        real = self._layer.real_time_steps(self._network, vectors.shape[1], num_steps)
        found = vectors[0, real].numpy()[: -(-num_steps // self._layer.stride)]
        missing = -(-num_steps // self._layer.stride) - len(found)
        return np.asarray(np.pad(found, ((0, missing), (0, 0)), mode="edge"), dtype=np.float32)

    def _steps(self, frames: np.ndarray) -> Tensor:
        """Return a clip as the network reads it, with a batch axis: normalised frames, or tokens."""
        if self._tokenizer is not None:
            return torch.from_numpy(tokenize_clips(self._tokenizer, [frames])[0].astype(np.int64))[None]
        about = self._model.metadata
        front_end = about["front_end"] | {"dtype": "float32"}  # frames are restored
        return normalise(torch.from_numpy(frames)[None], None, front_end, about["input"]["normalisation"])

    @property
    def _time_axis(self) -> int:
        return 1 if self._tokenizer is None else 2

    @property
    def _frames_per_step(self) -> int:
        return 1 if self._tokenizer is None else self._tokenizer.frames_per_token

    @property
    def _part(self) -> int:
        """Most steps that are read at once: a multiple of those from one state to the next."""
        windows = self._network.windows
        limits = (self._network.stem.max_frames, windows.length if windows else None)
        most = min([FRAMES_PER_BATCH, *(limit for limit in limits if limit)])
        return max(1, most // self._layer.stride) * self._layer.stride


def require_layer(network: Network, name: str) -> Layer:
    """Return the layer of a network. Raises SonolexError for one that it has not, or that has no time steps."""
    layer = choose_layer(network, name)
    if layer.time_axis is None:
        raise SonolexError(
            f"layer {name}: expected a layer along time, found one vector a clip; take another, such as encoder"
        )
    return layer
