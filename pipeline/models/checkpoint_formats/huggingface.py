"""Checkpoint format of transformers' ASTForAudioClassification: weights, config.json and preprocessor_config.json.

All its layer norms, the head's included, have one epsilon: `layer_norm_eps` of config.json, 1e-12 in all published ones,
where the authors' program has 1e-6 and 1e-5. Queries, keys and values have separate matrices.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from pipeline.artifacts.clips import Link
from pipeline.artifacts.files import file_digest, parse_json
from pipeline.artifacts.model import Normalisation
from pipeline.errors import SonolexError
from pipeline.models.checkpoint_formats.ast_checkpoint import (
    AstCheckpoint,
    AstClassifierParams,
    AstForm,
    AstSizes,
    Stated,
)
from pipeline.models.checkpoint_formats.files import hub_file, read_tensors
from pipeline.models.checkpoint_formats.naming import Names, from_names, to_names
from pipeline.paths import input_path

CONFIG, WEIGHTS, PREPROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"
MODEL_TYPE = "audio-spectrogram-transformer"
_WEIGHTS = (WEIGHTS, "pytorch_model.bin")
_QKV = ("query", "key", "value")
# Also of binary classifiers on one label a clip: transformers takes the sigmoid of the second and the softmax of the first.
_PROBLEMS: dict[Link, str] = {"softmax": "single_label_classification", "sigmoid": "multi_label_classification"}
# Entries of config.json, in the order of AstSizes.
_SIZES = (
    "num_mel_bins",
    "max_length",
    "patch_size",
    "time_stride",
    "frequency_stride",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
)
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


class HuggingFaceParams(AstClassifierParams):
    kind: Literal["huggingface"]  # `source` is a folder, or a name such as MIT/ast-finetuned-audioset-10-10-0.4593

    @property
    def has_statistics(self) -> bool:
        return True

    def require_source(self) -> None:
        if not _is_of_hub(self.source):
            for names in (_WEIGHTS, [CONFIG], [PREPROCESSOR]):
                _file(self.source, names)


class HuggingFaceCheckpoint(AstCheckpoint):
    Params = HuggingFaceParams
    signature = NAMES.class_token
    positions = NAMES.positions
    classes = "classifier.dense.weight"

    def __init__(self, params: HuggingFaceParams) -> None:
        weights = _file(params.source, _WEIGHTS)
        config = _read_json(
            _file(params.source, [CONFIG]), ("model_type", "num_mel_bins", "max_length", "layer_norm_eps")
        )
        preprocessor = _read_json(_file(params.source, [PREPROCESSOR]), ("mean", "std", "do_normalize"))
        for key, expected in {"model_type": MODEL_TYPE, "hidden_act": "gelu", "qkv_bias": True}.items():
            if config.get(key, expected) != expected:
                raise SonolexError(
                    f"pretrained: {params.source}: {CONFIG}: {key}: expected {expected!r}, found {config[key]!r}; take "
                    "weights of an ASTForAudioClassification"
                )
        self.where, self.digest, self.tensors = str(weights), file_digest(weights), read_tensors(weights)
        self.input_size = (config["num_mel_bins"], config["max_length"])
        self.stated = _stated(config)
        # A preprocessor without normalisation corresponds to mean 0 and 2 * 0.5.
        normalises = preprocessor["do_normalize"]
        self.statistics = [(preprocessor["mean"], preprocessor["std"]) if normalises else (0.0, 0.5)]
        self.norm_epsilons = (config["layer_norm_eps"], config["layer_norm_eps"])
        self.rows, self._names = params.classes, _class_names(weights.parent, config.get("id2label"))
        self.check(params)

    def class_names(self) -> list[str]:
        return super().class_names() if self._names is None else self._names

    @staticmethod
    def to_format(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        split: dict[str, Tensor] = {}
        for name, tensor in weights.items():
            if ".qkv." in name:
                parts = zip(_QKV, tensor.chunk(3), strict=True)
                split |= {name.replace(".qkv.", f".{part}."): rows for part, rows in parts}
            else:
                split[name] = tensor
        return to_names(split, NAMES)

    @staticmethod
    def from_format(tensors: Mapping[str, Tensor], grid: tuple[int, int]) -> dict[str, Tensor]:
        weights = from_names(tensors, NAMES, grid)
        for name in [name for name in weights if ".query." in name]:
            parts = [weights.pop(name.replace(".query.", f".{part}.")) for part in _QKV]
            weights[name.replace(".query.", ".qkv.")] = torch.cat(parts)
        return weights


class HuggingFaceFolder(NamedTuple):
    """Content of a folder's config.json and preprocessor_config.json, beside the statistics of log-mel frames."""

    sizes: AstSizes
    classes: list[str] | None  # None = unnamed: `LABEL_0` and so on, as transformers names them by default
    problem: str | None  # `problem_type`: what kind of labels the model was trained on, where it is stated
    sample_rate: int  # Hz


def read_folder(folder: Path) -> HuggingFaceFolder:
    """Read sizes and classes of a folder. Raises SonolexError where a file or an entry is missing."""
    _require_whole(folder)
    config = _read_json(folder / CONFIG, _SIZES)
    preprocessor = _read_json(folder / PREPROCESSOR, ("sampling_rate",))
    numbers = [config[name] for name in _SIZES]
    if not all(isinstance(number, int) and number > 0 for number in numbers):
        found = ", ".join(f"{name} {number!r}" for name, number in zip(_SIZES, numbers, strict=True))
        raise SonolexError(
            f"{folder / CONFIG}: expected sizes of a network, positive integers, found {found}; fetch it again"
        )
    names = _class_names(folder, config.get("id2label"))
    return HuggingFaceFolder(AstSizes(*numbers), names, config.get("problem_type"), preprocessor["sampling_rate"])


def _require_whole(folder: Path) -> None:
    missing = [name for name in (CONFIG, PREPROCESSOR) if not (folder / name).is_file()]
    missing += [] if any((folder / name).is_file() for name in _WEIGHTS) else [" or ".join(_WEIGHTS)]
    if missing:
        raise SonolexError(
            f"{folder}: expected a folder as save_pretrained of model and feature extractor writes it, found no "
            f"{', no '.join(missing)}; copy what is missing from the model's repository"
        )


def _class_names(folder: Path, labels: object) -> list[str] | None:
    """Return the values of `id2label` by number; None where none is a name."""
    if not isinstance(labels, dict) or not labels:
        return None
    numbers = sorted(labels, key=lambda number: (len(number), number))
    if numbers != [str(number) for number in range(len(numbers))]:
        raise SonolexError(
            f"{folder / CONFIG}: id2label: expected the numbers 0 to {len(numbers) - 1}, found others; fetch it again"
        )
    names = [str(labels[number]) for number in numbers]
    return None if names == [f"LABEL_{number}" for number in numbers] else names


def config_of(form: AstForm, n_mels: int, classes: Sequence[str], link: Link, epsilon: float) -> dict[str, object]:
    """Return config.json of one of our networks, whose `problem_type` says which probabilities its logits are of."""
    return {
        "architectures": ["ASTForAudioClassification"],
        "model_type": MODEL_TYPE,
        "hidden_size": form.encoder.width,
        "num_hidden_layers": form.encoder.depth,
        "num_attention_heads": form.encoder.heads,
        "intermediate_size": round(form.encoder.width * form.encoder.mlp_ratio),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": epsilon,
        "qkv_bias": True,
        "patch_size": form.stem.frames,
        "time_stride": form.stem.stride_frames,
        "frequency_stride": form.stem.stride_bands,
        "max_length": form.positions.frames,
        "num_mel_bins": n_mels,
        "id2label": {str(number): name for number, name in enumerate(classes)},
        "label2id": {name: number for number, name in enumerate(classes)},
        "problem_type": _PROBLEMS[link],
        "dtype": "float32",
    }


def preprocessor_of(form: AstForm, n_mels: int, sample_rate: int, normalisation: Normalisation) -> dict[str, object]:
    """Return preprocessor_config.json; the format divides by 2 * `std`, whatever our `std_scale` is."""
    return {
        "feature_extractor_type": "ASTFeatureExtractor",
        "do_normalize": normalisation["kind"] != "none",
        "mean": normalisation["mean"],
        "std": normalisation["std"] * normalisation["std_scale"] / 2,
        "num_mel_bins": n_mels,
        "max_length": form.positions.frames,
        "sampling_rate": sample_rate,
        "feature_size": 1,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
    }


def _stated(config: Mapping[str, object]) -> dict[str, Stated]:
    """Return the settings stated in config.json that the shapes of tensors do not determine."""
    keys = {
        "stem.stride_frames": "time_stride",
        "stem.stride_bands": "frequency_stride",
        "encoder.heads": "num_attention_heads",
        "encoder.depth": "num_hidden_layers",
        "encoder.width": "hidden_size",
    }
    return {ours: Stated(f"{CONFIG}: {theirs}", config[theirs]) for ours, theirs in keys.items() if theirs in config}


def _is_of_hub(source: str) -> bool:
    """Return whether a source is the name of a repository of the hub, and no folder or file here."""
    return not input_path(source).exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None


def _file(source: str, names: Sequence[str]) -> Path:
    folder = input_path(source)
    if folder.is_file():  # a file of the folder
        folder = folder.parent
    if _is_of_hub(source):
        return hub_file(source, names, source=source)
    for name in names:
        if (folder / name).is_file():
            return folder / name
    found = ", ".join(sorted(path.name for path in folder.glob("*"))[:8]) or "nothing"
    raise SonolexError(
        f"pretrained.source: {folder}: expected a folder with {' or '.join(names)}, as save_pretrained writes it, found "
        f"{found}; complete the folder, or name a repository of the hub as owner/name"
    )


def _read_json(path: Path, needed: Sequence[str]) -> dict[str, Any]:
    try:
        values = parse_json(path.read_bytes())
        missing = [key for key in needed if key not in values]
    except (ValueError, TypeError) as error:
        raise SonolexError(f"pretrained: {path}: expected JSON, found {error}; fetch the file again") from None
    if missing:
        raise SonolexError(
            f"pretrained: {path}: expected {', '.join(missing)}, found none; write the file with save_pretrained"
        )
    return dict(values)
