"""Token search as a torch module, for exported graphs and training: from frames to the tokens of a fold's vocabulary.

Conventions: frames (batch, frame, mel) float32 in the front end's units, of clips of one length; features (batch, token,
feature) float32, as `pipeline/vocabulary/features.py` orders them; tokens (batch, codebook, token) int64.

What is computed is that of `features.py` and of the kinds' `encode`. Products are rounded otherwise, so that frames which
lie equally far from two codes may get the other one. A kind of vocabulary has a line in `SEARCHES`.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.artifacts.vocabulary import Codebooks, FeatureSpace, Vocabulary
from pipeline.errors import SonolexError
from pipeline.vocabulary.features import DIRECTIONS, SHORTEST
from pipeline.vocabulary.neural import latent_books, scalar_bounds, scalar_places
from pipeline.vocabulary.perceptron import stored_layers


class TokenSearch(nn.Module):
    """Module that encodes frames as tokens."""

    def __init__(self, vocabulary: Vocabulary, *, instead: str = "export from tokens (--input tokens)") -> None:
        """Build the search. Raises SonolexError for a vocabulary that it cannot search; `instead` is what else to do."""
        super().__init__()
        if vocabulary.merged:
            raise SonolexError(
                f"{vocabulary.path}: expected a vocabulary without merged tokens, whose number depends on the sound, "
                f"found {len(vocabulary.merges)} merges; train on a vocabulary with bpe: null, or {instead}"
            )
        if vocabulary.network is not None:
            raise SonolexError(
                f"{vocabulary.path}: expected a vocabulary of frames, found one of hidden states of the network "
                f"{vocabulary.metadata['hidden_states']['model']}; train on a vocabulary with features.hidden_states null, "
                f"or {instead}"
            )
        if vocabulary.kind not in SEARCHES:
            raise SonolexError(
                f"{vocabulary.path}: expected one of the kinds {', '.join(SEARCHES)}, found {vocabulary.kind}; add its "
                f"search to {__name__}, or {instead}"
            )
        self.features = Features(vocabulary.space)
        self.search = SEARCHES[vocabulary.kind](vocabulary.fitted)

    def forward(self, frames: Tensor) -> Tensor:
        tokens: Tensor = self.search(self.features(frames))
        return tokens


class Features(nn.Module):
    """Features of frames: normalised, with slopes, stacked, and projected to principal components or discriminants."""

    mean: Tensor  # (mel,)
    scale: Tensor  # (mel,)
    delta_scale: Tensor  # (mel,)
    centre: Tensor  # (stacked feature,)
    components: Tensor  # (component, stacked feature)

    def __init__(self, space: FeatureSpace) -> None:
        super().__init__()
        self._centres, self._is_direction = space.normalisation == "l2", space.normalisation in DIRECTIONS
        self._deltas, self._stack, self._groups = space.deltas, space.stack, space.groups
        self._context, self._span = space.context, space.span
        self._projects = len(space.components) > 0
        self.register_buffer("mean", torch.tensor(space.mean))
        self.register_buffer("scale", torch.tensor(space.scale))
        self.register_buffer("delta_scale", torch.tensor(space.delta_scale))
        if self._projects:  # torch.export.save fails on empty tensors
            self.register_buffer("centre", torch.tensor(space.centre))
            self.register_buffer("components", torch.tensor(space.components))

    def forward(self, frames: Tensor) -> Tensor:
        z = (frames - self.mean) / self.scale
        if self._centres:
            z = z - z.mean(dim=2, keepdim=True)
        if self._is_direction:
            z = _unit(z, shortest=SHORTEST)
        if self._span > 1:
            z = self._fill_up(z)
        parts = torch.stack([z, self._slopes(z)] if self._deltas else [z], dim=2)
        features = self._arrange(parts)
        return (features - self.centre) @ self.components.T if self._projects else features

    def _slopes(self, z: Tensor) -> Tensor:
        """Return each frame's slope (batch, frame, mel), over `delta_scale`; see `slopes` in `features.py`."""
        reach, total = self._deltas, torch.zeros_like(z)
        for step in range(1, reach + 1):
            total = total + step * (_shifted(z, step, z.shape[1]) - _shifted(z, -step, z.shape[1]))
        return total / float(2 * sum(step**2 for step in range(1, reach + 1))) / self.delta_scale

    def _fill_up(self, z: Tensor) -> Tensor:
        """Repeat the last frame until the number of frames is a multiple of the stack, and both ends by the context."""
        stacks = (z.shape[1] + self._stack - 1) // self._stack
        return _shifted(z, -self._context, stacks * self._stack + 2 * self._context)

    def _arrange(self, parts: Tensor) -> Tensor:
        """Return frames (batch, frame, part, mel) as features: by group, in it by frame, in it z before slopes."""
        batch, _, count, mels = parts.shape
        if self._context:
            parts = self._overlapping(parts)
        grouped = parts.reshape(batch, -1, self._span, count, self._groups, mels // self._groups)
        return grouped.permute(0, 1, 4, 2, 3, 5).reshape(batch, -1, self._span * count * mels)

    def _overlapping(self, parts: Tensor) -> Tensor:
        """Return the frames of each token with those of its context: (batch, token, frame of the token, part, mel)."""
        num_frames = parts.shape[1] - 2 * self._context  # a multiple of the stack
        spans = [parts[:, first : first + num_frames : self._stack] for first in range(self._span)]
        return torch.stack(spans, dim=2)


class Nearest(nn.Module):
    """Search of the nearest codes (`pipeline/vocabulary/nearest.py`): features (..., feature) to ids (..., rank)."""

    codes: Tensor  # (feature, code)
    offsets: Tensor  # (code,)

    def __init__(self, codes: np.ndarray, count: int = 1) -> None:
        """Build from codes (code, feature)."""
        super().__init__()
        self._count = count
        offsets = -0.5 * np.einsum("cf,cf->c", codes, codes, dtype=np.float64)
        self.register_buffer("codes", torch.from_numpy(np.ascontiguousarray(codes.T)))
        self.register_buffer("offsets", torch.from_numpy(offsets.astype(np.float32)))

    def forward(self, features: Tensor) -> Tensor:
        scores = features @ self.codes + self.offsets
        return _find_largest(scores) if self._count == 1 else scores.topk(self._count).indices


def _find_largest(scores: Tensor) -> Tensor:
    """Return the place of the first largest score of each row, (..., 1); on a CPU by NumPy, in half of torch's time."""
    if scores.is_cpu and not torch.compiler.is_compiling():
        return torch.from_numpy(scores.detach().numpy().argmax(axis=-1, keepdims=True))
    return scores.argmax(dim=-1, keepdim=True)


class BandsSearch(nn.Module):
    """Search of codebooks that each cover features of their own; of kind kmeans there is one."""

    def __init__(self, codebooks: Codebooks) -> None:
        super().__init__()
        self._bands = codebooks.bands
        self.searches = nn.ModuleList(map(Nearest, codebooks.vectors))

    def forward(self, features: Tensor) -> Tensor:
        bands = zip(self.searches, self._bands, strict=True)
        return torch.cat([search(features[:, :, start:stop]) for search, (start, stop) in bands], dim=2).mT


class ResidualSearch(nn.Module):
    """Search of codebooks of which each codes what those before it left over."""

    def __init__(self, codebooks: Codebooks) -> None:
        super().__init__()
        self.searches = nn.ModuleList(map(Nearest, codebooks.codes))

    def forward(self, features: Tensor) -> Tensor:
        rest, tokens = features, []
        for search in self.searches:
            assert isinstance(search, Nearest)
            tokens.append(search(rest))
            rest = rest - search.codes.T[tokens[-1][:, :, 0]]
        return torch.cat(tokens, dim=2).mT


class RankedSearch(nn.Module):
    """Search of the nearest centroids of one codebook, the nearest first."""

    def __init__(self, codebooks: Codebooks) -> None:
        super().__init__()
        self.search = Nearest(codebooks.codes[0] / codebooks.own["weights"].values[0], len(codebooks.codes))

    def forward(self, features: Tensor) -> Tensor:
        tokens: Tensor = self.search(features).mT
        return tokens


class ProjectionSearch(nn.Module):
    """Search of the nearest direction to randomly projected features, in each codebook."""

    projections: Tensor  # (codebook, feature, dimension)

    def __init__(self, codebooks: Codebooks) -> None:
        super().__init__()
        projections, directions = (codebooks.own[name].values for name in ("projections", "directions"))
        self.register_buffer("projections", torch.from_numpy(projections))
        self.searches = nn.ModuleList(map(Nearest, directions))

    def forward(self, features: Tensor) -> Tensor:
        books = zip(self.searches, self.projections, strict=True)
        return torch.cat([search(_unit(features @ projection)) for search, projection in books], dim=2).mT


class EncodedSearch(nn.Module):
    """Search of the codes of a trained encoder's latent vectors (`pipeline/vocabulary/neural.py`)."""

    def __init__(self, codebooks: Codebooks) -> None:
        super().__init__()
        self.encoder = nn.Sequential()
        for weight, bias in stored_layers("encoder", codebooks.own):
            if len(self.encoder):
                self.encoder.append(nn.ReLU())
            self.encoder.append(_Affine(weight, bias))
        scalar = codebooks.own.get("levels")
        self.search = ScalarSearch(scalar.values) if scalar else ResidualSearch(latent_books(codebooks))

    def forward(self, features: Tensor) -> Tensor:
        tokens: Tensor = self.search(self.encoder(features))
        return tokens


class _Affine(nn.Module):
    """A layer of fixed weights: rows (..., input) to (..., output)."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: np.ndarray, bias: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("weight", torch.tensor(weight))
        self.register_buffer("bias", torch.tensor(bias))

    def forward(self, rows: Tensor) -> Tensor:
        return rows @ self.weight + self.bias


class ScalarSearch(nn.Module):
    """Tokens of latent vectors by finite scalar quantisation: levels of each dimension, as digits of one number."""

    width: Tensor  # these five are (dimension,)
    offset: Tensor
    shift: Tensor
    lowest: Tensor
    places: Tensor

    def __init__(self, levels: np.ndarray) -> None:
        super().__init__()
        for name, values in zip(("width", "offset", "shift"), scalar_bounds(levels), strict=True):
            self.register_buffer(name, torch.from_numpy(values))
        self.register_buffer("lowest", torch.from_numpy(levels // 2))
        self.register_buffer("places", torch.from_numpy(scalar_places(levels)))

    def forward(self, vectors: Tensor) -> Tensor:
        chosen = torch.round(torch.tanh(vectors + self.shift) * self.width - self.offset) + self.lowest
        return (chosen * self.places).sum(dim=2).to(torch.int64)[:, None]


SEARCHES: dict[str, Callable[[Codebooks], nn.Module]] = {
    "kmeans": BandsSearch,
    "bands": BandsSearch,
    "residual": ResidualSearch,
    "soft_kmeans": RankedSearch,
    "random_projection": ProjectionSearch,
    "neural": EncodedSearch,
}


def _unit(vectors: Tensor, shortest: float = 0.0) -> Tensor:
    """Return vectors (..., feature) at unit length; those that are not longer than `shortest` become zero."""
    length: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / length.where(length > shortest, torch.inf)


def _shifted(z: Tensor, step: int, count: int) -> Tensor:
    """Return `count` frames of (batch, frame, mel) from frame `step` on; the first and last frame repeat beyond the ends."""
    return z[:, (torch.arange(count, device=z.device) + step).clamp(0, z.shape[1] - 1)]
