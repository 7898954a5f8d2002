"""Neural tokens: codes of an autoencoder that is trained to reconstruct the features of training clips (VQ-VAE).

An encoder, a multilayer perceptron, maps the features of a token to a latent vector; a quantiser codes it; a decoder maps
the quantised vector to the features. Quantisers are vector quantisation (van den Oord, Vinyals and Kavukcuoglu, 2017,
"Neural discrete representation learning"), residual vector quantisation (Zeghidour et al., 2021, "SoundStream") and finite
scalar quantisation (Mentzer et al., 2023, "Finite scalar quantization: VQ-VAE made simple"), as vector-quantize-pytorch
trains them. Only fitting imports it: trained tokens are computed here, with NumPy.

With one codebook a token stands for one vector, which is its code. With several the decoder maps the sum of the code
vectors, which is no sum of features; a token's own code is then measured on the sample, see
`pipeline/vocabulary/measuring.py`.

Conventions: latents (codebook, code, dimension), the code vectors; levels (dimension,), of finite scalar quantisation alone;
`pipeline/vocabulary/perceptron.py` for the encoder and the decoder.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from pipeline.artifacts.vocabulary import Codebooks, NamedArray
from pipeline.vocabulary.base import sum_codes
from pipeline.vocabulary.clustering import Task, require_distinct
from pipeline.vocabulary.measuring import measure_codes
from pipeline.vocabulary.perceptron import apply_layers, layer_arrays, stored_layers
from pipeline.vocabulary.residual import encode as encode_residuals
from pipeline.vocabulary.settings import AutoencoderParams

_BOUND = 1 + 1e-3  # of the outermost levels, as the library has it: rounding reaches them for finite latents


class Params(AutoencoderParams):
    kind: Literal["neural"]


def fit(params: Params, features: np.ndarray) -> Codebooks:
    """Train on all of `features` (token, feature). The objective is the mean squared error by tenth of the training.

    Raises SonolexError where the library is not installed.
    """
    from pipeline.vocabulary.autoencoder import train_autoencoder

    if params.levels is None:
        require_distinct(params, Task(features, ("neural", 0), "whole frames"))
    trained = train_autoencoder(params, features)
    own = layer_arrays("encoder", trained.encoder) | layer_arrays("decoder", trained.decoder)
    own["latents"] = NamedArray(("codebook", "code", "dimension"), trained.latents)
    if params.levels is not None:
        own["levels"] = NamedArray(("dimension",), np.array(params.levels, np.float32))
    bands = [[0, features.shape[1]]] * params.codebooks
    codes = np.zeros((params.codebooks, params.num_tokens, features.shape[1]), np.float32)
    codebooks = Codebooks(codes, bands, trained.objective, own)
    if params.additive:
        return replace(codebooks, codes=apply_layers(trained.decoder, trained.latents[0])[None])
    codes, _ = measure_codes(features, encode(codebooks, features), params.num_tokens)
    return replace(codebooks, codes=codes)


def encode(codebooks: Codebooks, features: np.ndarray, ends: Sequence[int] = ()) -> np.ndarray:
    """Return the code of each row's latent vector, (codebook, token)."""
    vectors = apply_layers(stored_layers("encoder", codebooks.own), features, ends)
    if "levels" in codebooks.own:
        return _nearest_levels(vectors, codebooks.own["levels"].values)
    return encode_residuals(latent_books(codebooks), vectors, ends)


def decode(codebooks: Codebooks, tokens: np.ndarray) -> np.ndarray:
    """Return what the decoder makes of the sum of the tokens' code vectors; of one codebook it is stored as the codes."""
    if len(codebooks.codes) == 1:
        return sum_codes(codebooks, tokens)
    return apply_layers(stored_layers("decoder", codebooks.own), sum_codes(latent_books(codebooks), tokens))


def latent_books(codebooks: Codebooks) -> Codebooks:
    """Return the code vectors as codebooks of latent vectors."""
    latents = codebooks.own["latents"].values
    return Codebooks(latents, [[0, latents.shape[2]]] * len(latents))


def scalar_bounds(levels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return width, offset and shift of finite scalar quantisation: level = round(width * tanh(x + shift) - offset).

    Each is (dimension,) float32. Levels are counted from -(number of levels // 2) on.
    """
    width = (levels - 1) * _BOUND / 2
    offset = np.where(levels % 2 == 0, 0.5, 0)
    return width.astype(np.float32), offset.astype(np.float32), np.arctanh(offset / width).astype(np.float32)


def scalar_places(levels: np.ndarray) -> np.ndarray:
    """Return the tokens between two levels of each dimension, (dimension,) float32; the first is that of the ones."""
    return np.cumprod([1, *levels[:-1]]).astype(np.float32)


def _nearest_levels(vectors: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return the tokens (1, token) uint16 of latent vectors (token, dimension) by finite scalar quantisation."""
    width, offset, shift = scalar_bounds(levels)
    chosen = np.round(np.tanh(vectors + shift) * width - offset) + levels // 2
    tokens: np.ndarray = (chosen @ scalar_places(levels))[None].astype(np.uint16)
    return tokens
