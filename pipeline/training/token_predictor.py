"""Masked-token predictor: input, stem and encoder of a network, with a head that predicts tokens.

The task is BERT's (Devlin et al., 2019, arXiv 1810.04805). For sound, HuBERT (Hsu et al., 2021, arXiv 2106.07447) predicts
k-means tokens under masked spans, and BEATs (Chen et al., 2023, arXiv 2212.09058) tokens of patches; both read audio and
predict tokens. Here the model reads and predicts tokens, as BERT does.

A stem of stride s has one time step for s frames, so step t predicts frames s * t to s * t + s - 1: a linear map computes s
vectors from it, one per frame. A token's logit is the product of that vector with the token's own, plus a bias. The tokens'
vectors are the embeddings (tied, as in BERT), so that the head needs width x s x feature weights instead of width x s x
token, has the geometry of the vocabulary from the start, and works with every stem. Frames after the last time step of a
patch stem are not predicted.

It is initialised as the unigram model: the map with zeros, the biases with the tokens' log frequencies.

Conventions: B batch, T frame, M predicted position, F feature; tokens (B, codebook, T) int64, mask (B, T) bool, True = real.
"""

import torch
from torch import Tensor, nn

from pipeline.artifacts.model import InputMetadata
from pipeline.artifacts.pretrained import Pretrained
from pipeline.errors import SonolexError
from pipeline.models.base import ModelParams
from pipeline.models.network import Network, NetworkParams
from pipeline.models.neural_model import NeuralModel
from pipeline.models.registry import validate_model_params

_READER = "reader."  # prefix of the network's own weights


class TokenPredictor(NeuralModel):
    """Network that predicts tokens: `model(tokens, mask) -> (vectors (B, T, F), whether predicted (B, T))`, then `scores`.

    `reader` is a network whose encoder supports pretraining; `frequencies` (codebook, token), all above 0, are those of the
    tokens in the training sequences.
    """

    def __init__(self, reader: Network, frequencies: Tensor) -> None:
        super().__init__()
        assert reader.input.mask_token is not None  # checked by `ModelParams.supports_pretraining`
        self.reader, self.mask_token = reader, reader.input.mask_token
        self.widths = [weights.shape[1] for weights in reader.input.weights]
        self.biases = nn.Parameter(frequencies.log())
        features = reader.encoder.num_rows * reader.encoder.num_features
        self.project = nn.Linear(features, reader.encoder.stride * sum(self.widths))
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

        self.embedding_rate = reader.embedding_rate
        self.supports_activation_checkpointing = reader.supports_activation_checkpointing

    def set_activation_checkpointing(self, on: bool) -> None:
        self.reader.set_activation_checkpointing(on)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        time_steps, real = self.reader.context(self.reader.embed(tokens), mask)
        vectors = self.project(time_steps).reshape(len(tokens), -1, sum(self.widths))
        missing = tokens.shape[2] - vectors.shape[1]  # below 0 where the last time step extends beyond the last frame
        frames = torch.arange(tokens.shape[2], device=tokens.device)
        asked = frames < real.sum(1, keepdim=True) * self.reader.encoder.stride
        return nn.functional.pad(vectors, (0, 0, 0, missing)), asked if mask is None else asked & mask

    def scores(self, vectors: Tensor) -> list[Tensor]:
        """Map vectors (M, F) to logits (M, token), one per codebook."""
        parts = zip(torch.split(vectors, self.widths, dim=1), self.reader.input.weights, self.biases, strict=True)
        return [part @ weights[: len(bias)].T + bias for part, weights, bias in parts]

    def learned(self) -> dict[str, Tensor]:
        """Return all weights by name, except those of the network's head, which is not used."""
        return {name: values for name, values in self.state_dict().items() if not name.startswith(f"{_READER}head.")}


def open_predictor(pretrained: Pretrained) -> TokenPredictor:
    """Return the model of a folder, with its weights."""
    metadata = pretrained.metadata
    reader = new_reader(
        validate_model_params(metadata["model"], metadata["params"], pretrained.path), metadata["input"]
    )
    shape = pretrained.weights["biases"].shape
    model = TokenPredictor(reader, torch.ones(shape))
    model.load_state_dict(model.state_dict() | {name: torch.from_numpy(v) for name, v in pretrained.weights.items()})
    return model


def new_reader(params: ModelParams, metadata: InputMetadata) -> Network:
    """Build a network of whole clips for pretraining, without using its head.

    Raises SonolexError where its params do not support it.
    """
    if not isinstance(params, NetworkParams) or not params.supports_pretraining:
        raise SonolexError(
            "pretrain: expected a network that reads tokens by an encoder which supports pretraining, found kind "
            f"{params.kind} that reads {params.reads}"
        )
    return Network(params.model_copy(update={"window": None}), metadata, 1)


def load_pretrained(model: Network, pretrained: Pretrained) -> None:
    """Load weights from masked-token pretraining into a network, in place; its head keeps its weights.

    Raises ArtifactError where they do not fit.
    """
    weights = model.state_dict()
    own = {f"{_READER}{name}": tuple(v.shape) for name, v in weights.items() if not name.startswith("head.")}
    pretrained.require_shapes(_READER, own)
    learned = {name.removeprefix(_READER): torch.from_numpy(v) for name, v in pretrained.weights.items() if name in own}
    model.load_state_dict(weights | learned)
