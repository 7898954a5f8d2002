"""Training of an autoencoder with a quantiser of vector-quantize-pytorch, on the sample's features.

The loss is the mean squared error of the reconstruction, plus the commitment loss with quantisers that have code vectors.
Code vectors start as centroids of the first batch and follow moving averages of what they code; one that codes too little is
replaced by a vector of the batch. That may be one which has a code already, as digital silence has: of codes that coincide
after training, all but the first move to the vectors that are coded worst. Training takes one thread of the processor, and
the same params and features give the same bits.

Conventions: features (token, feature) float32; latents (codebook, code, dimension) float32. The network reads and writes
features less their mean, over their standard deviation over all features; the layers that are returned undo that.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import SonolexError
from pipeline.execution.threads import single_threaded, single_threaded_torch
from pipeline.seeding import named_generator, named_seed
from pipeline.vocabulary.nearest import nearest_codes
from pipeline.vocabulary.perceptron import Layer, apply_layers
from pipeline.vocabulary.settings import AutoencoderParams

PACKAGE = "vector-quantize-pytorch"

_DECAY = 0.95  # of the moving averages that code vectors follow
_DEAD = 0.1  # of an equal share of the batch: a code with a lower moving average of uses is replaced
_COINCIDING = (
    1e-5  # squared distance over codes' mean squared length, below which rounding tells which of two is nearer
)
_PARTS = 10  # of the training, that the objective is recorded for


@dataclass(frozen=True)
class Autoencoder:
    """A trained autoencoder."""

    encoder: list[Layer]  # features to a latent vector
    decoder: list[Layer]  # a quantised latent vector to features
    latents: np.ndarray  # (codebook, code, dimension) float32; their sums over codebooks are what the decoder reads
    objective: list[float]  # mean squared error of the features, by part of the training


@dataclass(frozen=True)
class _Scaling:
    """Mean and scale of the features."""

    centre: np.ndarray  # (feature,) float32
    scale: float


class _Quantiser(nn.Module):
    """A quantiser of the library: latent vectors (token, dimension) to quantised ones, and a loss of its own."""

    def __init__(self, params: AutoencoderParams, batch_size: int) -> None:
        """Build for batches of `batch_size` tokens."""
        super().__init__()
        library = _library()
        books = {
            "dim": params.codebook_dim,
            "codebook_size": params.num_tokens,
            "decay": _DECAY,
            "kmeans_init": True,
            "threshold_ema_dead_code": _DEAD * batch_size / params.num_tokens,
            "commitment_weight": params.commitment,
        }
        kinds: dict[str, Callable[[], nn.Module]] = {
            "vq": lambda: library.VectorQuantize(**books),
            "residual": lambda: library.ResidualVQ(num_quantizers=params.codebooks, **books),
            "fsq": lambda: library.FSQ(params.levels),
        }
        self.library = kinds[params.quantiser]()

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        quantised, _, *losses = self.library(latents[None])
        loss = losses[0].sum() if losses else latents.new_zeros(())
        return quantised[0], loss

    def latents(self) -> np.ndarray:
        """Return the code vectors (codebook, code, dimension)."""
        names = ("codebooks", "codebook", "implicit_codebook")  # of ResidualVQ, VectorQuantize, FSQ
        found: Tensor = next(getattr(self.library, name) for name in names if hasattr(self.library, name))
        return found.detach().numpy().reshape(-1, *found.shape[-2:]).astype(np.float32)


def train_autoencoder(params: AutoencoderParams, features: np.ndarray) -> Autoencoder:
    """Train on features (token, feature). Raises SonolexError where the library is not installed."""
    _library()
    size = min(params.batch_size, len(features))
    widths = [features.shape[1], *params.hidden, len(params.levels or ()) or params.codebook_dim]
    with single_threaded(), single_threaded_torch(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(named_seed(params.seed, "neural"))
        encoder, decoder = _perceptron(widths), _perceptron(widths[::-1])
        quantiser = _Quantiser(params, size)
        scaling = _fit_scaling(features)
        batches = _batches(named_generator(params.seed, "neural", "batches"), len(features), size)
        inputs = ((features[rows] - scaling.centre) / np.float32(scaling.scale) for rows in batches)
        losses = _train(params, nn.ModuleList([encoder, quantiser, decoder]), inputs)
    variance = scaling.scale**2 * features.shape[1]
    objective = [float(part.mean() * variance) for part in np.array_split(losses, min(_PARTS, len(losses)))]
    layers = _unscaled(scaling, _layers(encoder), _layers(decoder))
    latents = quantiser.latents()
    if params.levels is None:
        latents = separated(latents, apply_layers(layers[0], features))
    return Autoencoder(*layers, latents, objective)


def separated(latents: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Return code vectors (codebook, code, dimension) of which none lies where one before it in its codebook lies.

    The later one becomes the latent vector, among `vectors` (token, dimension), that is coded worst. Codes coincide still
    where these have fewer distinct values.
    """
    latents, rest = latents.copy(), vectors
    for book in latents:
        if len(coinciding := _coinciding(book)):
            far = _squares(rest - book[nearest_codes(rest, book)[0]])
            for code in coinciding:
                book[code] = rest[far.argmax()]
                far = np.minimum(far, _squares(rest - book[code]))
        rest = rest - book[nearest_codes(rest, book)[0]]
    return latents


def _coinciding(book: np.ndarray) -> np.ndarray:
    """Return the codes (int,) of a codebook (code, dimension) that lie where one with a lower number lies."""
    exact = book.astype(np.float64)
    squares = _squares(exact)
    distances = squares[:, None] + squares - 2 * exact @ exact.T
    return np.flatnonzero(np.tril(distances <= _COINCIDING * squares.mean(), -1).any(axis=1))


def _squares(rows: np.ndarray) -> np.ndarray:
    """Return the squared length of each row."""
    lengths: np.ndarray = np.einsum("td,td->t", rows, rows)
    return lengths


def _train(params: AutoencoderParams, network: nn.ModuleList, batches: Iterator[np.ndarray]) -> np.ndarray:
    """Train encoder, quantiser and decoder in place, on a batch (token, feature) of scaled features a step.

    Returns the mean squared error of each step, (step,) float64.
    """
    encoder, quantiser, decoder = network
    optimiser = torch.optim.Adam(network.parameters(), lr=params.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, params.steps)
    errors = np.empty(params.steps)
    network.train()
    for step, batch in zip(range(params.steps), batches, strict=False):
        inputs = torch.from_numpy(batch)
        quantised, loss = quantiser(encoder(inputs))
        error = F.mse_loss(decoder(quantised), inputs)
        optimiser.zero_grad()
        (error + loss).backward()
        optimiser.step()
        schedule.step()
        errors[step] = error.item()
    return errors


def _batches(generator: np.random.Generator, num_rows: int, size: int) -> Iterator[np.ndarray]:
    """Yield rows in batches of `size` without end, in another order in each pass; a pass drops what is no whole batch."""
    while True:
        order = generator.permutation(num_rows)
        for start in range(0, num_rows - size + 1, size):
            yield order[start : start + size]


def _library() -> ModuleType:
    try:
        import vector_quantize_pytorch
    except ImportError as error:
        raise SonolexError(
            f"vocabularies.*.kind neural: expected the package {PACKAGE}, found {error}; install it (pip install "
            f"{PACKAGE}), or take another kind"
        ) from None
    library: ModuleType = vector_quantize_pytorch
    return library


def _perceptron(widths: list[int]) -> nn.Sequential:
    """Return affine layers of these numbers of units, with ReLU between them."""
    layers: list[nn.Module] = []
    for number, width in enumerate(widths[1:]):
        layers += [*([nn.ReLU()] if number else []), nn.Linear(widths[number], width)]
    return nn.Sequential(*layers)


def _layers(perceptron: nn.Sequential) -> list[Layer]:
    affine = (module for module in perceptron if isinstance(module, nn.Linear))
    return [Layer(np.ascontiguousarray(one.weight.detach().numpy().T), one.bias.detach().numpy()) for one in affine]


def _fit_scaling(features: np.ndarray) -> _Scaling:
    """Return the mean of each feature, and the standard deviation from it over all of them; 1 where nothing varies."""
    variance = features.var(axis=0, dtype=np.float64).mean()
    return _Scaling(features.mean(axis=0, dtype=np.float64).astype(np.float32), math.sqrt(variance) or 1.0)


def _unscaled(scaling: _Scaling, encoder: list[Layer], decoder: list[Layer]) -> tuple[list[Layer], list[Layer]]:
    """Return the layers with the scaling of features in the first of the encoder and the last of the decoder."""
    (weight, bias), *rest = encoder
    *before, last = decoder
    weight = weight / np.float32(scaling.scale)
    first = Layer(weight, bias - scaling.centre @ weight)
    scale = np.float32(scaling.scale)
    return [first, *rest], [*before, Layer(last.weight * scale, last.bias * scale + scaling.centre)]
