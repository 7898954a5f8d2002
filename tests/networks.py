"""Sections of small networks, changes to them by dotted key, and what is needed to build and run them."""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import ParamsError
from pipeline.models.network import Network, NetworkParams
from pipeline.models.registry import validate_model_params

Section = dict[str, Any]

INPUTS: dict[str, Section] = {
    "frames": {"kind": "frames", "normalisation": "corpus", "std_scale": 1.0},
    "tokens": {"kind": "tokens", "embedding": "centroids", "embedding_rate": 0.05, "embedding_width": 12},
    "decoded_tokens": {"kind": "decoded_tokens"},
}
STEMS: dict[str, Section] = {
    "patches": {
        "kind": "patches",
        "frames": 8,
        "bands": 8,
        "stride_frames": 5,
        "stride_bands": 4,
        "positions": {"kind": "sinusoidal"},
    },
    "convolution": {"kind": "convolution", "channels": [8, 16], "strides": [[4, 4], [2, 2]], "kernel": 5},
    "convolution_1d": {"kind": "convolution_1d", "channels": [20, 16], "strides": [2, 1], "kernel": 5},
    "linear": {"kind": "linear"},
    "identity": {"kind": "identity"},
    "fixed_length": {"kind": "fixed_length", "frames": 64, "fill": "silence"},
    "textures": {"kind": "textures", "window": 0.2, "hop": 0.1, "floor_quantile": 0.4, "noise": 0.0, "dropout": 0.0},
}
ENCODERS: dict[str, Section] = {
    "transformer": {"kind": "transformer", "width": 32, "depth": 2, "heads": 4, "mlp_ratio": 2.0, "drop_path": 0.0},
    "conformer": {
        "kind": "conformer",
        "width": 32,
        "depth": 2,
        "heads": 4,
        "mlp_ratio": 2.0,
        "kernel": 5,
        "drop_path": 0.0,
    },
    "lstm": {"kind": "lstm", "input_size": None, "width": 32, "depth": 1, "dropout": 0.0},
    "cnn": {"kind": "cnn", "channels": [8, 16, 24], "strides": [[2, 2]] * 3, "kernel": 3},
    "timm": {
        "kind": "timm",
        "network": "mobilenetv3_small_050",
        "drop_path": 0.0,
        "norm_epsilon": None,
        "norm_momentum": None,
    },
    "identity": {"kind": "identity"},
}
HEADS: dict[str, Section] = {
    "mean": {"kind": "pooled", "pooling": "mean"},
    "mean_max": {"kind": "pooled", "pooling": "mean_max"},
    "last": {"kind": "pooled", "pooling": "last"},
    "class": {"kind": "class_token", "distillation_token": False},
    "class_distillation": {"kind": "class_token", "distillation_token": True},
    "attention": {"kind": "attention", "heads": 2},
    "flatten": {"kind": "flatten", "hidden": [16], "dropout": 0.0},
    "deep": {"kind": "deep", "pooling": "additive", "hidden": [16, 12], "dropout": 0.0},
    "per_class": {"kind": "per_class", "pooling": "additive", "hidden": [], "dropout": 0.0},
}
LEVELS = {"frame_rate": 100.0, "log_unit": 1.0, "texture_floor": -1.0}  # of texture statistics
METADATA: dict[str, dict[str, Any]] = {
    "frames": LEVELS
    | {
        "n_mels": 24,
        "log_floor": -16.0,
        "normalisation": {"kind": "corpus", "std_scale": 2.0, "mean": -6.0, "std": 4.0},
    },
    "tokens": LEVELS
    | {
        "vocabulary_size": 20,
        "num_codebooks": 2,
        "bands": [[0, 12], [12, 24]],
        "n_mels": 12,
        "log_floor": -16.0,
        "frames_per_token": 2,
    },
}
NUM_CLASSES = 7


def network(
    reads: str = "frames", stem: str = "linear", encoder: str = "transformer", head: str = "mean", **changes: Any
) -> Section:
    """Return a section of the parts of these names; keys of `changes` have `__` for dots.

    The stem `textures` has an input of levels: frames that are not normalised, or decoded tokens.
    """
    if stem == "textures":
        changes = ({"input__normalisation": "none"} if reads == "frames" else {}) | changes
        reads = "decoded_tokens" if reads == "tokens" else reads
    parts = {"input": INPUTS[reads], "stem": STEMS[stem], "encoder": ENCODERS[encoder], "head": HEADS[head]}
    section = {"kind": "network", **copy.deepcopy(parts), "window": None, "pretrained": None}
    return changed(section, {key.replace("__", "."): value for key, value in changes.items()})


def changed(section: Section, changes: dict[str, Any]) -> Section:
    """Return a copy of a section with other values: dotted key -> value."""
    section = copy.deepcopy(section)
    for key, value in changes.items():
        *before, last = key.split(".")
        inner = section
        for name in before:
            inner = inner[name]
        inner[last] = value
    return section


def params_of(section: Section) -> NetworkParams:
    """Return the params of a network's section."""
    params = validate_model_params("tested", section)
    assert isinstance(params, NetworkParams)
    return params


def build(
    section: Section, metadata: dict[str, Any] | None = None, num_classes: int = NUM_CLASSES, *, seed: int = 0
) -> Any:
    """Build the network of a section; one that reads tokens knows random codebooks. Any, so that tests reach its parts."""
    params = params_of(section)
    metadata = metadata or METADATA[params.reads]
    torch.manual_seed(seed)
    model = Network(params, metadata, num_classes)  # type: ignore[arg-type]
    if params.input.kind == "decoded_tokens":
        model.input.table.normal_()
    elif params.reads == "tokens":
        generator = np.random.default_rng(0)
        size = metadata["vocabulary_size"]
        model.input.load_codebooks(
            [generator.standard_normal((size, stop - start)).astype(np.float32) for start, stop in metadata["bands"]]
        )
    return model


def make_inputs(reads: str, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Return a padded batch of noise for the metadata above, and its mask."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    if reads == "frames":
        frames = torch.randn(len(lengths), max(lengths), 24, generator=generator)
        return frames.masked_fill(~mask[:, :, None], 0), mask
    tokens = torch.randint(0, 20, (len(lengths), 2, max(lengths)), generator=generator)
    return tokens.masked_fill(~mask[:, None], 20), mask


def combinations() -> list[tuple[str, str, str]]:
    """Return the names of the stems, encoders and heads that fit together."""
    found = []
    for stem in STEMS:
        for encoder in ENCODERS:
            for head in HEADS:
                try:
                    params_of(network("frames", stem, encoder, head))
                except ParamsError:
                    continue
                found.append((stem, encoder, head))
    return found
