"""Classical models as torch modules, for exported graphs.

Conventions: frames (batch, frame, mel) float32 in the front end's units, tokens (batch, codebook, token) int64, of clips of
one length; logits (batch, class) float32. A module computes what `predict` of its class does, kernels in float64 as there. A
classical model has a line in `MODULES`.
"""

from typing import Protocol, cast

import torch
from torch import Tensor, nn

from pipeline.errors import SonolexError
from pipeline.models.base import ModelParams
from pipeline.models.baselines.bag_of_tokens import BagOfTokensParams
from pipeline.models.baselines.base import Weights
from pipeline.models.baselines.frame_statistics import FrameStatisticsParams
from pipeline.models.baselines.textures import TextureStatisticsParams
from pipeline.models.baselines.torch_textures import DecodedFrames, TextureFeatures, register, span


class KernelScores(nn.Module):
    """Logits (row, class) of features (row, feature) by kernel classifiers (`kernel_classifier.py`)."""

    mean: Tensor  # (feature,)
    scale: Tensor  # (feature,)
    support: Tensor  # (vector, feature)
    dual: Tensor  # (class, vector)
    intercepts: Tensor  # (class,)

    def __init__(self, weights: Weights, kernel_width: float) -> None:
        super().__init__()
        register(self, weights, ("mean", "scale", "support", "dual", "intercepts"))
        self._gamma = kernel_width / weights["support"].shape[1]

    def forward(self, features: Tensor) -> Tensor:
        rows = (features.double() - self.mean) / self.scale
        support = self.support.double()
        squared = rows.square().sum(dim=1, keepdim=True) - 2 * rows @ support.T + support.square().sum(dim=1)
        kernel = torch.exp(squared.clamp(min=0) * -self._gamma)
        return (kernel @ self.dual.double().T + self.intercepts).float()


class BagOfTokensModule(nn.Module):
    """Logistic regression on token counts."""

    idf: Tensor  # (codebook, token)
    coefficients: Tensor  # (class, codebook * token)
    intercepts: Tensor  # (class,)

    def __init__(self, params: BagOfTokensParams, weights: Weights, n_mels: int) -> None:
        super().__init__()
        register(self, weights, ("idf", "coefficients", "intercepts"))
        self._sublinear = params.sublinear

    def forward(self, tokens: Tensor) -> Tensor:
        counts = self._count(tokens)
        frequency = (1 + counts.clamp(min=1).log()) * (counts > 0) if self._sublinear else counts
        features = frequency * self.idf.flatten()
        length: Tensor = torch.linalg.vector_norm(features, dim=1, keepdim=True)
        return (features / length.where(length > 0, 1)) @ self.coefficients.T + self.intercepts

    def _count(self, tokens: Tensor) -> Tensor:
        """Return the token counts of each clip, (batch, codebook * token) float32."""
        num_codebooks, size = self.idf.shape
        columns = (tokens + size * torch.arange(num_codebooks)[:, None]).flatten(1)
        zeros = torch.zeros(len(tokens), num_codebooks * size)
        return zeros.scatter_add(1, columns, torch.ones_like(columns, dtype=torch.float32))


class FrameStatisticsModule(nn.Module):
    """Support vector machines on per-band statistics."""

    def __init__(self, params: FrameStatisticsParams, weights: Weights, n_mels: int) -> None:
        super().__init__()
        self.scores = KernelScores(weights, params.kernel_width)

    def forward(self, frames: Tensor) -> Tensor:
        x = frames.double()
        last = x.shape[1] - 1
        change = (span(x, 1, last) - span(x, 0, last)).abs().mean(dim=1)
        std = (x - x.mean(dim=1, keepdim=True)).square().mean(dim=1).sqrt()
        logits: Tensor = self.scores(torch.cat([x.mean(dim=1), std, x.amax(dim=1), change], dim=1))
        return logits


class TextureStatisticsModule(nn.Module):
    """Kernel ridge regression on texture statistics: the mean of the logits of a clip's augmented copies."""

    def __init__(self, params: TextureStatisticsParams, weights: Weights, n_mels: int) -> None:
        super().__init__()
        self.decode = DecodedFrames(weights) if params.reads == "tokens" else nn.Identity()
        self.features = TextureFeatures(params.augmented_copies, weights, n_mels)
        self.scores = KernelScores(weights, params.kernel_width)

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.features(self.decode(inputs))  # (copy, batch, feature)
        logits: Tensor = (
            self.scores(features.flatten(0, 1)).unflatten(0, (features.shape[0], features.shape[1])).mean(0)
        )
        return logits


class MajorityModule(nn.Module):
    """The class frequencies of the training clips, for every clip."""

    logits: Tensor  # (class,)

    def __init__(self, params: ModelParams, weights: Weights, n_mels: int) -> None:
        super().__init__()
        register(self, weights, ("logits",))

    def forward(self, frames: Tensor) -> Tensor:
        return self.logits + 0 * frames[:, :1, 0]  # of the batch's shape


class BaselineModule(Protocol):
    """Constructor of a module, from a stored model's params, weights and number of mel bands."""

    def __call__(self, params: ModelParams, weights: Weights, n_mels: int) -> nn.Module: ...


MODULES = {
    "bag_of_tokens": BagOfTokensModule,
    "frame_statistics": FrameStatisticsModule,
    "texture_statistics": TextureStatisticsModule,
    "majority": MajorityModule,
}


def baseline_module(params: ModelParams, weights: Weights, n_mels: int) -> nn.Module:
    """Return a stored classical model as a module. Raises SonolexError for a kind that a graph cannot hold."""
    if params.kind not in MODULES:
        raise SonolexError(
            f"expected one of the kinds {', '.join(MODULES)}, found {params.kind}, which looks up token sequences in "
            "tables; export one of those, or a network"
        )
    return cast(BaselineModule, MODULES[params.kind])(params, weights, n_mels)
