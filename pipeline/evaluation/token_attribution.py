"""Attribution of a network's logits to the tokens of a clip, by integrated gradients.

Sundararajan et al., 2017, "Axiomatic Attribution for Deep Networks", arXiv 1703.01365. The path runs from the baseline, a
feature map of zeros, to the clip's embeddings. Zeros are the embedding of the padding token; in tables of centroids they are
the mean frame. A token's attribution is the sum over the features of its own embedding, also where several codebooks share
features. A clip's attributions add up to the difference between its logits and the baseline's (completeness), but for the
error of the integral, which Gauss-Legendre quadrature approximates.

Conventions: S step, T position, F feature, K class.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.artifacts.clips import link_of
from pipeline.artifacts.model import TrainedModel
from pipeline.errors import SonolexError
from pipeline.evaluation.network_prediction import build_network
from pipeline.evaluation.prediction import describe_model, params_of
from pipeline.models.network import Network
from pipeline.training.batches import Batches
from pipeline.training.inputs import FRAMES_PER_BATCH, Inputs


class ClipAttribution(NamedTuple):
    """Attributions of one clip's logits, and what they should add up to."""

    tokens: np.ndarray  # (codebook, T) int64
    values: np.ndarray  # (class, codebook, T) float32
    difference: np.ndarray  # (class,) logits of the clip minus those of the baseline


class TokenAttributions(NamedTuple):
    """Means over the occurrences of each token in some clips; of tokens that do not occur 0."""

    occurrences: np.ndarray  # (codebook, token) int64
    means: np.ndarray  # (codebook, token, class) float32
    own: np.ndarray  # (codebook, token) float32: to the classes of each occurrence's clip
    gap: float  # of completeness, over clips and classes: root mean square
    difference: float  # of the logits that attributions add up to: root mean square


class Attributor:
    """Attributes the logits of one trained network to tokens."""

    def __init__(self, model: TrainedModel, inputs: Inputs, *, steps: int) -> None:
        """Take a network whose input has an embedding of tokens, and the tokens. Raises SonolexError for any other model."""
        if not params_of(model).attributes_tokens:
            raise SonolexError(
                f"{model.path}: expected a network with input.kind tokens, found {describe_model(model)}; name another in "
                "atlas.attribution"
            )
        self._model, self._inputs, self._steps = model, inputs, steps
        self._relative = link_of(model.metadata) == "softmax"
        self._network = build_network(model).requires_grad_(False)

    def read(self, clip_id: str) -> ClipAttribution:
        """Return the attributions of a clip."""
        batches = Batches(self._inputs, [clip_id], self._model.metadata["input"]["normalisation"])
        batch = batches.take([0]).to(torch.device("cpu"))
        values, difference = attribute(self._network, batch.inputs, steps=self._steps, relative=self._relative)
        return ClipAttribution(batch.inputs[0].numpy(), values.numpy(), difference.numpy())

    def read_all(self, labels: Mapping[str, Sequence[int]]) -> TokenAttributions:
        """Return the means over all occurrences in the clips of `labels` (clip_id -> classes)."""
        metadata = self._model.metadata["input"]
        shape = metadata["num_codebooks"], metadata["vocabulary_size"]
        occurrences, own = np.zeros(shape), np.zeros(shape)
        sums = np.zeros((*shape, len(self._model.metadata["classes"])))
        gaps, differences = [], []
        for clip, classes in labels.items():
            found = self.read(clip)
            books = np.broadcast_to(np.arange(shape[0])[:, None], found.tokens.shape)
            np.add.at(occurrences, (books, found.tokens), 1)
            np.add.at(sums, (books, found.tokens), np.moveaxis(found.values, 0, -1))
            np.add.at(own, (books, found.tokens), found.values[list(classes)].mean(axis=0) if classes else 0)
            gaps.append(found.values.sum(axis=(1, 2)) - found.difference)
            differences.append(found.difference)
        count = np.maximum(occurrences, 1)
        return TokenAttributions(
            occurrences=occurrences.astype(np.int64),
            means=(sums / count[..., None]).astype(np.float32),
            own=(own / count).astype(np.float32),
            gap=_root_mean_square(gaps),
            difference=_root_mean_square(differences),
        )


def attribute(network: Network, tokens: Tensor, *, steps: int, relative: bool) -> tuple[Tensor, Tensor]:
    """Attribute the logits of one clip (1, codebook, T) without padding: (class, codebook, T), and differences (class,).

    With `relative`, logits are relative to their mean over classes. The integral has `steps` points.
    """
    with torch.no_grad():
        features = network.embed(tokens)
        ends = _logits(network, torch.cat([torch.zeros_like(features), features]), relative=relative)
    gradients = _mean_gradients(network, features, steps, relative=relative)
    with torch.no_grad():
        values = [network.input.attribute(tokens, gradient)[0] for gradient in gradients]
    return torch.stack(values), ends[1] - ends[0]


def _mean_gradients(network: Network, features: Tensor, steps: int, *, relative: bool) -> Tensor:
    """Return the gradients of all logits, averaged along the path to `features` (1, T, F): (class, 1, T, F)."""
    points, weights = np.polynomial.legendre.leggauss(steps)
    places = torch.tensor((points + 1) / 2, dtype=features.dtype)[:, None, None]
    parts = torch.tensor(weights / 2, dtype=features.dtype)[:, None]
    each = max(1, FRAMES_PER_BATCH // features.shape[1])
    total: Tensor | None = None
    for place, part in zip(torch.split(places, each), torch.split(parts, each), strict=True):
        path = (place * features).requires_grad_()
        logits = (_logits(network, path, relative=relative) * part).sum(0)
        rows = [torch.autograd.grad(logit, path, retain_graph=True)[0].sum(0, keepdim=True) for logit in logits]
        total = torch.stack(rows) if total is None else total + torch.stack(rows)
    assert total is not None
    return total


def _logits(network: Network, features: Tensor, *, relative: bool) -> Tensor:
    logits = network.classify(features, None)
    return logits - logits.mean(1, keepdim=True) if relative else logits


def _root_mean_square(values: Sequence[np.ndarray]) -> float:
    return float(np.sqrt(np.square(values).mean()))
