"""The layout of transformers' ASTForAudioClassification: a folder of config.json, weights and preprocessor_config.json.

Its layer norms, that of the head included, have one epsilon: `layer_norm_eps` of config.json, 1e-12 in all published ones
where the authors' own program has 1e-6 and 1e-5. Queries, keys and values are matrices of their own.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pipeline.artifacts.files import file_digest
from pipeline.errors import SonolexError
from pipeline.models.layouts.checkpoint import Checkpoint, Stated
from pipeline.models.layouts.files import hub_file, read_tensors
from pipeline.models.layouts.naming import Names, from_names, to_names
from pipeline.params import Params
from pipeline.paths import input_path

CONFIG, WEIGHTS, PREPROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"
MODEL_TYPE = "audio-spectrogram-transformer"
_WEIGHTS = (WEIGHTS, "pytorch_model.bin")
_QKV = ("query", "key", "value")
_INSIDE = "audio_spectrogram_transformer."

NAMES = Names(
    modules={
        "stem.project": f"{_INSIDE}embeddings.patch_embeddings.projection",
        "encoder.norm": f"{_INSIDE}layernorm",
        "head.norm": "classifier.layernorm",
        "head.classify": "classifier.dense",
    },
    blocks=f"{_INSIDE}encoder.layer.",
    block_modules={
        "norm1": "layernorm_before",
        **{name: f"attention.attention.{name}" for name in _QKV},
        "proj": "attention.output.dense",
        "norm2": "layernorm_after",
        "fc1": "intermediate.dense",
        "fc2": "output.dense",
    },
    class_token=f"{_INSIDE}embeddings.cls_token",
    distillation_token=f"{_INSIDE}embeddings.distillation_token",
    positions=f"{_INSIDE}embeddings.position_embeddings",
    projection=f"{_INSIDE}embeddings.patch_embeddings.projection.weight",
)


class HuggingFaceParams(Params):
    kind: Literal["huggingface"]
    source: str  # a folder, or a name of the hub such as MIT/ast-finetuned-audioset-10-10-0.4593
    digest: str | None  # SHA-256 of the weights file, its first 32 digits; null takes whatever is there


def read_checkpoint(params: HuggingFaceParams) -> Checkpoint:
    """Open a folder, or files of the hub. Raises SonolexError."""
    weights = _file(params.source, _WEIGHTS)
    config = _read_json(_file(params.source, [CONFIG]), ("model_type", "num_mel_bins", "max_length", "layer_norm_eps"))
    preprocessor = _read_json(_file(params.source, [PREPROCESSOR]), ("mean", "std", "do_normalize"))
    for key, expected in {"model_type": MODEL_TYPE, "hidden_act": "gelu", "qkv_bias": True}.items():
        if config.get(key, expected) != expected:
            raise SonolexError(
                f"start: {params.source}: {CONFIG}: {key}: expected {expected!r}, found {config[key]!r}; take weights of an "
                "ASTForAudioClassification"
            )
    # A preprocessor that does not normalise: frames enter as they are, which mean 0 and twice a half stand for.
    normalises = preprocessor["do_normalize"]
    return Checkpoint(
        where=str(weights),
        digest=file_digest(weights),
        tensors=read_tensors(weights),
        picture=(config["num_mel_bins"], config["max_length"]),
        stated=_stated(config),
        statistics=(preprocessor["mean"], preprocessor["std"]) if normalises else (0.0, 0.5),
        norm_epsilons=(config["layer_norm_eps"], config["layer_norm_eps"]),
        positions=NAMES.positions,
        classes="classifier.dense.weight",
        to_layout=to_layout,
        from_layout=from_layout,
    )


def to_layout(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our weights as the layout has them."""
    split: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if ".qkv." in name:
            parts = zip(_QKV, tensor.chunk(3), strict=True)
            split |= {name.replace(".qkv.", f".{part}."): rows for part, rows in parts}
        else:
            split[name] = tensor
    return to_names(split, NAMES)


def from_layout(tensors: Mapping[str, Tensor], grid: tuple[int, int]) -> dict[str, Tensor]:
    """Return tensors of the layout as our weights; `grid` is (rows, columns) of the position table."""
    weights = from_names(tensors, NAMES, grid)
    for name in [name for name in weights if ".query." in name]:
        parts = [weights.pop(name.replace(".query.", f".{part}.")) for part in _QKV]
        weights[name.replace(".query.", ".qkv.")] = torch.cat(parts)
    return weights


def config_of(params: Any, n_mels: int, classes: Sequence[str], label_kind: str, epsilon: float) -> dict[str, Any]:
    """Return config.json of one of our models, of the section `params`."""
    problem = "single_label_classification" if label_kind == "one" else "multi_label_classification"
    return {
        "architectures": ["ASTForAudioClassification"],
        "model_type": MODEL_TYPE,
        "hidden_size": params.width,
        "num_hidden_layers": params.depth,
        "num_attention_heads": params.heads,
        "intermediate_size": round(params.width * params.mlp_ratio),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": epsilon,
        "qkv_bias": True,
        "patch_size": params.stem.frames,
        "time_stride": params.stem.stride_frames,
        "frequency_stride": params.stem.stride_bands,
        "max_length": params.stem.positions.frames,
        "num_mel_bins": n_mels,
        "id2label": {str(number): name for number, name in enumerate(classes)},
        "label2id": {name: number for number, name in enumerate(classes)},
        "problem_type": problem,
        "dtype": "float32",
    }


def preprocessor_of(params: Any, n_mels: int, sample_rate: int, normalisation: Mapping[str, Any]) -> dict[str, Any]:
    """Return preprocessor_config.json: it divides by twice its `std`, whatever our `deviations` are."""
    return {
        "feature_extractor_type": "ASTFeatureExtractor",
        "do_normalize": normalisation["kind"] != "none",
        "mean": normalisation["mean"],
        "std": normalisation["deviation"] * normalisation["deviations"] / 2,
        "num_mel_bins": n_mels,
        "max_length": params.stem.positions.frames,
        "sampling_rate": sample_rate,
        "feature_size": 1,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
    }


def _stated(config: Mapping[str, Any]) -> dict[str, Stated]:
    """Return what config.json says of settings that the shapes of tensors do not show, or not plainly."""
    keys = {
        "stem.stride_frames": "time_stride",
        "stem.stride_bands": "frequency_stride",
        "heads": "num_attention_heads",
        "depth": "num_hidden_layers",
        "width": "hidden_size",
    }
    return {ours: Stated(f"{CONFIG}: {theirs}", config[theirs]) for ours, theirs in keys.items() if theirs in config}


def _file(source: str, names: Sequence[str]) -> Path:
    folder = input_path(source)
    if folder.is_file():  # one of the folder's files was named
        folder = folder.parent
    if not folder.is_dir() and re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        return hub_file(source, names, start=source)
    for name in names:
        if (folder / name).is_file():
            return folder / name
    found = ", ".join(sorted(path.name for path in folder.glob("*"))[:8]) or "nothing"
    raise SonolexError(
        f"start.source: {folder}: expected a folder with {' or '.join(names)}, as save_pretrained writes it, found {found}; "
        "complete the folder, or name a repository of the hub as owner/name"
    )


def _read_json(path: Path, needed: Sequence[str]) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
        missing = [key for key in needed if key not in values]
    except (ValueError, TypeError) as error:
        raise SonolexError(f"start: {path}: expected JSON, found {error}; fetch the file again") from None
    if missing:
        raise SonolexError(
            f"start: {path}: expected {', '.join(missing)}, found none; write the file with save_pretrained"
        )
    return dict(values)
