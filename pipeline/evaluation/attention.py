"""Attention of a network over the spectrogram of a clip.

Every call of scaled_dot_product_attention is answered with weights that are kept: the very weights with which the values are
averaged, so the logits that come out are the model's own. Nothing of the models is changed for it, and no kind of stem or
head is special.

Rollout (Abnar and Zuidema, 2020, "Quantifying Attention Flow in Transformers") multiplies the layers up: each is half the
mean over its heads and half the identity, for what the residual connection passes by. Weights say where information could
come from and not why the model decides as it does (Jain and Wallace, 2019, "Attention is not Explanation").

Conventions: Q query, K key, both positions with the class tokens first; positions run through time, and at each time upward
through the bands. A map is (frame, mel), in units of even attention: 1 is what each position would get of equal parts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pipeline.artifacts.attention import ROLLOUT
from pipeline.artifacts.model import TrainedModel
from pipeline.errors import SonolexError
from pipeline.evaluation.network_prediction import build_network
from pipeline.evaluation.prediction import describe_model, params_of
from pipeline.models.parts import Stem
from pipeline.training.batches import Batches
from pipeline.training.inputs import Inputs


@dataclass(frozen=True, eq=False)
class ClipAttention:
    """Attention maps of one clip, by layer."""

    logits: np.ndarray  # (class,) float32
    layers: np.ndarray  # (layer, Q, K) float32, mean over heads; each row sums to 1
    num_tokens: int  # class tokens in front; 0 where positions are pooled
    stem: Stem
    num_frames: int
    n_mels: int

    def over_positions(self, layer: int | None = None) -> np.ndarray:
        """Return the attention (position,) that the clip's vector pays: of one layer, from 1, or of all by rollout.

        The rows are those of the class tokens, or of all positions where these are pooled. Its mean is 1.
        """
        weights = self._rollout() if layer is None else self.layers[layer - 1]
        rows = weights[: self.num_tokens] if self.num_tokens else weights
        mean = rows.mean(axis=0)[self.num_tokens :]
        return np.asarray(mean / mean.mean())

    def over_spectrogram(self, layer: int | None = None) -> np.ndarray:
        """Return the attention as a map (frame, mel): the mean over the positions whose patch holds a frame and band.

        What no whole patch holds, at the upper and the right edge, is NaN.
        """
        values = self.over_positions(layer)
        grid = values.reshape(-1, self.stem.num_rows)
        frames, bands = self.stem.frames_of(len(grid), self.num_frames), self.stem.bands_of(self.n_mels)
        total = frames.T.astype(np.float64) @ grid @ bands
        count = frames.T.astype(np.float64) @ np.ones_like(grid) @ bands
        return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan))

    def _rollout(self) -> np.ndarray:
        product = np.eye(self.layers.shape[1], dtype=np.float32)
        for weights in self.layers:
            product = 0.5 * (weights @ product + product)
        return product


class AttentionReader:
    """Runs one trained model on clips and keeps what it attends to."""

    method: ClassVar[str] = ROLLOUT

    def __init__(self, model: TrainedModel, inputs: Inputs) -> None:
        """Take a network that attends to frames, and the frames that it reads. Raises SonolexError for any other model."""
        if params_of(model).explanation != "attention":
            raise SonolexError(
                f"{model.path}: expected a network with attention over frames, which lies in time and Hz, found "
                f"{describe_model(model)}"
            )
        self._model, self._inputs = model, inputs
        self._network = build_network(model)

    def read(self, clip_id: str, target: int | None = None) -> ClipAttention:
        """Return what the model attends to in a clip, whichever class is the target."""
        batches = Batches(self._inputs, [clip_id], self._model.metadata["input"]["normalisation"])
        batch = batches.take([0]).to(torch.device("cpu"))
        params = self._model.metadata["params"]
        depth = params["encoder"]["depth"]
        with torch.no_grad(), _KeptAttention() as kept:
            logits = self._classify(batch.inputs, batch.mask)
        if len(kept.layers) != depth:
            raise SonolexError(
                f"{self._model.path}: expected {depth} layers of attention, found {len(kept.layers)} calls of "
                "scaled_dot_product_attention; a model that computes it otherwise cannot be drawn"
            )
        return ClipAttention(
            logits=logits[0].numpy(),
            layers=torch.stack(kept.layers).numpy(),
            num_tokens=self._network.head.num_class_tokens,
            stem=self._network.stem,
            num_frames=self._inputs.num_frames(clip_id),
            n_mels=self._network.input.num_features // self._network.input.num_channels,
        )

    def _classify(self, inputs: Tensor, mask: Tensor | None) -> Tensor:
        """Return the logits, with all positions computed in all layers: the network itself leaves out what is never read."""
        network = self._network
        x, mask = network.head.prepend_class_tokens(*network.stem(network.embed(inputs), mask))
        logits: Tensor = network.head(*network.encoder(x, mask))
        return logits


class _KeptAttention(TorchFunctionMode):
    """Answers scaled_dot_product_attention for one clip, and keeps the weights (Q, K), mean over heads."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: list[Tensor] = []

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return self._attend(*args, **(kwargs or {}))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, **options: object) -> Tensor:
        unknown = {name: value for name, value in options.items() if value not in (None, 0, 0.0, False)}
        if unknown:
            raise SonolexError(f"attention: expected scaled_dot_product_attention without options, found {unknown}")
        logits = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        if attn_mask is not None:
            logits = logits.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else logits + attn_mask
        weights = logits.softmax(-1)
        self.layers.append(weights[0].mean(0))
        averaged: Tensor = weights @ v
        return averaged
