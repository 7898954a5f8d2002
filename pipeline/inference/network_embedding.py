"""Embeddings from inside a network: the vectors of a layer (`pipeline/evaluation/network_layers.py`).

A clip's embedding is the mean over its real time steps.

Conventions: B batch, S time step, D width. Clips of a batch have the same length, so none is masked.
"""

import numpy as np
import torch
from torch import Tensor

from pipeline.artifacts.tables import metadata_digest
from pipeline.errors import SonolexError
from pipeline.evaluation.network_layers import LayerOutputs, choose_layer, find_layers
from pipeline.evaluation.network_prediction import build_network
from pipeline.inference.classifier import Classifier, Member
from pipeline.inference.embedding import TEXTURES, Embedder, TimeSteps
from pipeline.training.batches import Batches


class NetworkEmbedder(Embedder):
    """Embedder of one layer, by a network of its own, so that other uses of the model see no hook."""

    def __init__(self, classifier: Classifier, member: Member, layer: str) -> None:
        """Build the network. Raises SonolexError, which lists all layers, for one that it has not."""
        self._classifier, self._member, self._network = classifier, member, build_network(member.model)
        self.layer, self._layer = layer, choose_layer(self._network, layer, [TEXTURES])
        self.dim = self._layer.dim
        self.sample_rate, self.min_samples = classifier.sample_rate, classifier.front_end.min_samples
        self.mix, self.allow_silence = classifier.reading["mix"], classifier.reading["allow_silence"]
        self._frame_rate = self._member.inputs([]).frame_rate
        self.hop = None if self._layer.time_axis is None else self._layer.stride / self._frame_rate
        metadata = member.model.metadata
        self.digest = metadata_digest(
            {"weights": metadata["weights"], "source": metadata["source"], "front_end": metadata["front_end"]}
        )
        self._outputs = LayerOutputs(self._network, [layer])

    def clips(self, waveforms: np.ndarray, where: str) -> np.ndarray:
        values, num_frames = self._values(waveforms, where)
        if self._layer.time_axis is not None:
            values = values[:, self._layer.real_time_steps(self._network, values.shape[1], num_frames)].mean(1)
        return np.asarray(values.numpy(), dtype=np.float32)

    def steps(self, waveforms: np.ndarray, where: str) -> TimeSteps:
        if self._layer.time_axis is None:
            raise SonolexError(
                f"layer {self.layer}: expected a layer along time for the embeddings of frames, found one vector a clip; "
                "take another, such as encoder"
            )
        values, num_frames = self._values(waveforms, where)
        real = self._layer.real_time_steps(self._network, values.shape[1], num_frames)
        # A frame stands for the middle of its hop, as in all plots.
        seconds = (self._layer.stride * np.arange(len(real)) + self._layer.centre + 0.5) / self._frame_rate
        return TimeSteps(seconds[real.numpy()], np.asarray(values[:, real].numpy(), dtype=np.float32))

    def _values(self, waveforms: np.ndarray, where: str) -> tuple[Tensor, int]:
        """Return the layer's values (B, S, D) or (B, D), and the number of frames or tokens of a clip."""
        clips = [self._classifier.frames(waveform, where) for waveform in waveforms]
        if self._member.source:
            clips = self._classifier.tokens(clips, self._member.source)
        inputs = self._member.inputs(clips)
        batches = Batches(inputs, inputs.clip_ids, self._member.model.metadata["input"]["normalisation"])
        batch = batches.take(range(len(clips))).to(torch.device("cpu"))
        output = self._outputs.of(batch.inputs)[self.layer][0]
        return self._layer.read(output), inputs.num_frames(inputs.clip_ids[0])


def layers_of(member: Member) -> dict[str, int]:
    """Return the layers of a stored network, and the width of each."""
    layers = find_layers(build_network(member.model))
    return {name: layer.dim for name, layer in layers.items()}
